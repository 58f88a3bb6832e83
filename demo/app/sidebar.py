"""Sidebar: the model and the embeddings."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import streamlit as st

from demo.app import embeddings_box, messages, options, plain, weights_box
from demo.app.app_dirs import AppDirs
from demo.app.embeddings_box import select_embeddings
from gm import config as configuration
from gm.checkpoints import config_choice
from gm.config import Config, family_options, paths
from gm.embeddings.embedding import Embedding
from gm.errors import UserError

__all__ = ["ModelSelection", "select_embeddings", "show"]


@dataclass(frozen=True)
class ModelSelection:
    """The model's config, its YAML file ("" if the weights chose it), and the selected embedding files' embeddings."""

    config: Config
    config_path: str
    embeddings: dict[Path, list[Embedding]]

    @property
    def placeholder_tokens(self) -> list[str]:
        return [embedding.placeholder_token for loaded in self.embeddings.values() for embedding in loaded]

    def sampling_config(self, **sampling: Any) -> Config:
        """Return the checked config with `sampling` and the selected embeddings; UserError for a bad value."""
        weights = [str(path) for path in self.embeddings]
        updated = dataclasses.replace(self.config.sampling, **{**sampling, "textual_inversion_weight": weights})
        config = dataclasses.replace(self.config, sampling=updated)
        configuration.check(config)
        return config


def show(specs: dict[str, dict[str, Any]], dirs: AppDirs) -> ModelSelection:
    """Show the sidebar and return its selection; what cannot be loaded is reported there and left out."""
    with st.sidebar:
        st.header("Model", divider="gray")
        spec, config = _model(specs, dirs)
        st.header("Embeddings", divider="gray")
        embeddings = embeddings_box.show(spec["textual_inversion_weight"], dirs, config.model.family)
    sampling = dataclasses.replace(config.sampling, height=None, width=None)
    if (spec["H"], spec["W"]) != (config.model.resolution, config.model.resolution):
        sampling = dataclasses.replace(sampling, height=spec["H"], width=spec["W"])
    return ModelSelection(dataclasses.replace(config, sampling=sampling), spec["config"], embeddings)


def _model(specs: dict[str, dict[str, Any]], dirs: AppDirs) -> tuple[dict[str, Any], Config]:
    """Show the model's widgets; return its entry in `specs` and its config."""
    names = list(specs)
    available = [name for name, spec in specs.items() if Path(paths.find_shipped(spec["ckpt"])).exists()]
    if st.session_state.get("version") not in names:
        st.session_state["version"] = available[0] if available else names[0]
    version = st.selectbox("Version", names, key="version", help="model to use")
    spec = specs[version]
    weight, vae = weights_box.show(version, spec["ckpt"], dirs)
    try:
        config = configuration.load(spec["config"], {"run": {"weight": weight}})
    except UserError as error:
        messages.error(error, dirs)
        weight, config = spec["ckpt"], configuration.load(spec["config"], {"run": {"weight": spec["ckpt"]}})
    if weight != spec["ckpt"]:
        spec, config = _of_family(spec, config, dirs)
    if not os.path.exists(config.run.weight):
        missing = messages.for_page(config.run.weight, dirs)
        plain.warning(f"{missing} is not a file. README.md says how to get and convert the weights.")
    with st.expander("Run options"):
        values = options.run_options(config.run, {*family_options.inapplicable(config.model), "vae"})
        try:
            config = dataclasses.replace(config, run=dataclasses.replace(config.run, **values, vae=vae))
        except UserError as error:
            messages.error(error, dirs)
    return spec, config


def _of_family(spec: dict[str, Any], config: Config, dirs: AppDirs) -> tuple[dict[str, Any], Config]:
    """Return the entry and the config, or if the weights are of another family than the config, those of the family."""
    weight = config.run.weight
    try:
        path, sections = config_choice.config_for(weight, spec["config"])
        model = configuration.load(path, sections).model
        is_same = (model.family, model.schedule) == (config.model.family, config.model.schedule)
        if is_same and model.kind == config.model.kind:
            return spec, config
        plain.caption(f"{Path(weight).name} goes with {path}")
        family = {"H": model.resolution, "W": model.resolution, "config": "", "textual_inversion_weight": []}
        return {**spec, **family}, configuration.load(path, {**sections, "run": {"weight": weight}})
    except UserError as error:
        messages.error(error, dirs)
        return spec, config
