"""Web app: streamlit run demo/sampling.py --server.port 8501; see docs/webui.md."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import streamlit as st

from demo.app import browser, compare, generate, header, options, sidebar, train
from demo.app.app_dirs import AppDirs
from demo.app.sidebar import ModelSelection
from gm.config import paths

# Defaults of each model: height and width of an image (H, W), channels (C) and downsampling factor (f) of its latents,
# whether an empty negative prompt is encoded as text instead of zeroed (is_legacy), its files, and its embedding files.
VERSION2SPECS: dict[str, dict[str, Any]] = {
    "SD-XL-base-1.0": {
        "H": 1024,
        "W": 1024,
        "C": 4,
        "f": 8,
        "is_legacy": False,
        "config": "configs/training/sd_xl_base_finetune_textual_inversion.yaml",
        "ckpt": "checkpoints/sd_xl_base_1.0_ms.ckpt",
        "textual_inversion_weight": [],
    },
    "SD-XL-v-prediction": {
        "H": 1024,
        "W": 1024,
        "C": 4,
        "f": 8,
        "is_legacy": False,
        "config": "configs/training/sdxl_v_prediction_finetune_textual_inversion.yaml",
        "ckpt": "checkpoints/sdxl_v_prediction_ms.ckpt",
        "textual_inversion_weight": [],
    },
    "SD-1.5": {
        "H": 512,
        "W": 512,
        "C": 4,
        "f": 8,
        "is_legacy": True,
        "config": "configs/training/sd_v1.5_textual_inversion.yaml",
        "ckpt": "checkpoints/sd_v1.5_ms.ckpt",
        "textual_inversion_weight": [],
    },
    "SD-2.1-base": {
        "H": 512,
        "W": 512,
        "C": 4,
        "f": 8,
        "is_legacy": True,
        "config": "configs/training/sd_v2.1_base_textual_inversion.yaml",
        "ckpt": "checkpoints/sd_v2.1_base_ms.ckpt",
        "textual_inversion_weight": [],
    },
    "SD-2.1-768": {
        "H": 768,
        "W": 768,
        "C": 4,
        "f": 8,
        "is_legacy": True,
        "config": "configs/training/sd_v2.1_768_v_textual_inversion.yaml",
        "ckpt": "checkpoints/sd_v2.1_768_v_ms.ckpt",
        "textual_inversion_weight": [],
    },
    "tiny-SD-XL": {
        "H": 64,
        "W": 64,
        "C": 4,
        "f": 4,
        "is_legacy": False,
        "config": "configs/training/tiny_textual_inversion.yaml",
        "ckpt": "checkpoints/tiny_sd_xl_base.safetensors",
        "textual_inversion_weight": [],
    },
    "tiny-SD-1": {
        "H": 64,
        "W": 64,
        "C": 4,
        "f": 4,
        "is_legacy": True,
        "config": "configs/training/tiny_sd1_textual_inversion.yaml",
        "ckpt": "checkpoints/tiny_sd_v1.safetensors",
        "textual_inversion_weight": [],
    },
}


class App:
    """The pages, which share the sidebar's selection."""

    def __init__(self, specs: dict[str, dict[str, Any]], dirs: AppDirs) -> None:
        self.specs = specs
        self.dirs = dirs
        self.selection: ModelSelection

    def show(self) -> None:
        """Show the sidebar and the current page."""
        st.set_page_config("Textual inversion", "🔤", layout="wide")
        browser.check_host()
        browser.restore(self.dirs)
        options.persist_widgets()
        pages = {
            "generate": st.Page(self.generate, title="Generate", icon=":material/brush:", url_path="generate"),
            "compare": st.Page(self.compare, title="Compare", icon=":material/compare:", url_path="compare"),
            "train": st.Page(self.train, title="Train", icon=":material/model_training:", url_path="train"),
        }
        # Streamlit has no path for its default page: it would refuse /generate.
        home = st.Page(lambda: None, title="Textual inversion", url_path="home", default=True)
        page = st.navigation([home, *pages.values()], position="hidden")
        if page == home:
            st.switch_page(pages["generate"])
        header.show(pages)
        self.selection = sidebar.show(self.specs, self.dirs)
        page.run()
        browser.save(self.dirs)

    def generate(self) -> None:
        generate.page(self.selection, self.dirs)

    def compare(self) -> None:
        compare.page(self.selection, self.dirs)

    def train(self) -> None:
        train.page(self.selection, self.dirs)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--runs", type=paths.expand, default="runs", help="folder of training runs, watched for embedding files"
    )
    parser.add_argument("--outputs", type=paths.expand, default="outputs/app", help="folder of generated images")
    parser.add_argument(
        "--checkpoints", type=paths.find_shipped, default="checkpoints", help="folder of weights to choose from"
    )
    arguments = parser.parse_args()
    App(VERSION2SPECS, AppDirs(Path(arguments.runs), Path(arguments.outputs), Path(arguments.checkpoints))).show()
