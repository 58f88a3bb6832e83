"""The app: streamlit run demo/sampling.py --server.port 8501; see docs/webui.md."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import streamlit as st

from demo.app import compare, draw, learn, model, options
from demo.app.places import Places

# What is chosen at first for each model: sides of an image (H, W), channels (C) and reduction (f) of its latents,
# whether an empty negative prompt is read as text rather than zeroed (is_legacy), its files, and learned ones.
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
}


def main(specs: dict[str, dict[str, Any]], places: Places) -> None:
    """Show the page that is chosen."""
    st.set_page_config("SDXL textual inversion", "🔤", layout="wide")
    options.keep()
    page = st.navigation(
        [
            st.Page(lambda: draw.page(choice, places), title="Draw", icon=":material/brush:", url_path="draw"),
            st.Page(
                lambda: compare.page(choice, places), title="Compare", icon=":material/compare:", url_path="compare"
            ),
            st.Page(lambda: learn.page(choice, places), title="Learn", icon=":material/school:", url_path="learn"),
        ],
        position="top",
    )
    choice = model.sidebar(specs, places)  # here, not by a page: Streamlit forgets a page's widgets when it is left
    page.run()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of learned words, watched for new ones")
    parser.add_argument("--outputs", type=Path, default=Path("outputs/app"), help="folder of what is drawn")
    flags = parser.parse_args()
    main(VERSION2SPECS, Places(flags.runs, flags.outputs))
