"""Sidebar: the model and the embeddings."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import streamlit as st

from demo.app import browser, options, plain
from demo.app.app_dirs import AppDirs
from demo.app.server import embedding_list, embedding_uploads, training_jobs
from gm import config as configuration
from gm.checkpoints import config_choice
from gm.config import Config, family_options, paths
from gm.embeddings import io as embedding_io
from gm.embeddings.embedding import Embedding
from gm.embeddings.names import split_token
from gm.errors import UserError

_WATCH_SECONDS = 4  # between scans of the folder of runs


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
        spec, config = _model(specs)
        st.header("Embeddings", divider="gray")
        embeddings = _embeddings(spec, dirs, config.model.family)
    sampling = dataclasses.replace(config.sampling, height=None, width=None)
    if (spec["H"], spec["W"]) != (config.model.resolution, config.model.resolution):
        sampling = dataclasses.replace(sampling, height=spec["H"], width=spec["W"])
    return ModelSelection(dataclasses.replace(config, sampling=sampling), spec["config"], embeddings)


def select_embeddings(paths: Sequence[Path]) -> None:
    """Select embedding files in the folder of runs and rerun the app."""
    st.session_state["new embeddings"] = list(paths)
    st.rerun(scope="app")


def _model(specs: dict[str, dict[str, Any]]) -> tuple[dict[str, Any], Config]:
    """Show the model's widgets; return its entry in `specs` and its config."""
    names = list(specs)
    available = [name for name, spec in specs.items() if Path(paths.find_shipped(spec["ckpt"])).exists()]
    if st.session_state.get("version") not in names:
        st.session_state["version"] = available[0] if available else names[0]
    version = st.selectbox("Version", names, key="version", help="model to use")
    spec = specs[version]
    st.session_state.setdefault(f"weight of {version}", spec["ckpt"])
    weight = st.text_input("Checkpoint", key=f"weight of {version}", help="a .ckpt or .safetensors file of the model")
    weight = weight.strip() or spec["ckpt"]
    try:
        config = configuration.load(spec["config"], {"run": {"weight": weight}})
    except UserError as error:
        plain.error(error)
        weight, config = spec["ckpt"], configuration.load(spec["config"], {"run": {"weight": spec["ckpt"]}})
    if weight != spec["ckpt"]:
        spec, config = _of_family(spec, config)
    if not os.path.exists(config.run.weight):
        plain.warning(f"{config.run.weight} is not a file. README.md says how to get and convert the weights.")
    with st.expander("Run options"):
        values = options.run_options(config.run, family_options.inapplicable(config.model))
        try:
            config = dataclasses.replace(config, run=dataclasses.replace(config.run, **values))
        except UserError as error:
            plain.error(error)
    return spec, config


def _of_family(spec: dict[str, Any], config: Config) -> tuple[dict[str, Any], Config]:
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
        plain.error(error)
        return spec, config


def _embeddings(spec: dict[str, Any], dirs: AppDirs, family: str) -> dict[Path, list[Embedding]]:
    """Show the embeddings' widgets; return the selected files with what they hold."""
    in_runs = _find_embeddings(dirs)
    available = in_runs | {str(path): Path(paths.expand(path)) for path in spec["textual_inversion_weight"]}
    available |= {name: Path(path) for name, path in st.session_state.get("renamed embeddings", {}).items()}
    _update_selection(available, spec["textual_inversion_weight"])
    names = st.multiselect(
        "Embeddings",
        list(available),
        key="embeddings",
        placeholder="None: train or upload one",
        label_visibility="collapsed",
    )
    _watch(dirs, in_runs)
    _upload(dirs, family)
    loaded: dict[Path, list[Embedding]] = {}
    for name in names:
        try:
            loaded[available[name]] = embedding_io.load_all(available[name], family)
        except UserError as error:  # one file that cannot be used is left out alone
            plain.error(error)
    return loaded


def _find_embeddings(dirs: AppDirs) -> dict[str, Path]:
    """Return the embedding files that this browser may see: not the uploads and runs that belong to others."""
    me = browser.identify()
    uploads = [folder for folder in dirs.all_uploads.glob("*") if folder.name != me]
    return embedding_list.find_embeddings(dirs.runs, [*uploads, *training_jobs.private_folders(dirs.training_runs, me)])


def _update_selection(available: dict[str, Path], default: list[str]) -> None:
    """Set the multiselect's value: the selection of before, without files that are gone, with a newly added one."""
    selected = [name for name in st.session_state.get("embeddings", default) or [] if name in available]
    if "requested embeddings" in st.session_state:
        selected = _requested(available)
    added = st.session_state.pop("new embeddings", [])
    selected += [name for name, path in available.items() if path in added and name not in selected]
    st.session_state.embeddings = selected


def _requested(available: dict[str, Path]) -> list[str]:
    """Return the names of the files that an image's parameters use, once after they are applied.

    A file that they give another placeholder token, `file=<token>`, is added to `available`.
    """
    requested = [Path(path) for path in st.session_state.pop("requested embeddings")]
    for path in requested:
        file, token = split_token(path)
        if token and path not in available.values() and file in available.values():
            renamed = st.session_state.setdefault("renamed embeddings", {})
            renamed[f"{token} ({file})"] = str(path)
            available[f"{token} ({file})"] = path
        if path not in available.values():
            plain.warning(
                f"The embedding file {path} of these parameters is missing; upload it below or train it again."
            )
    return [name for name, path in available.items() if path in requested]


def _upload(dirs: AppDirs, family: str) -> None:
    uploaded = st.file_uploader(
        "Upload embedding files",
        accept_multiple_files=True,
        key="embedding file",
        help="of this toolkit, diffusers (both files together), AUTOMATIC1111, ComfyUI, kohya …",
    )
    file_ids = [file.file_id for file in uploaded]
    if not uploaded or st.session_state.get("uploaded file ids") == file_ids:
        return
    st.session_state["uploaded file ids"] = file_ids
    try:
        files = [(file.name, file.getvalue()) for file in uploaded]
        select_embeddings(embedding_uploads.store_embeddings(files, dirs.uploads(browser.identify()), family))
    except UserError as error:
        plain.error(error)


@st.fragment(run_every=_WATCH_SECONDS)
def _watch(dirs: AppDirs, listed: dict[str, Path]) -> None:
    """Rerun the app when an embedding file was added to or removed from the folder of runs."""
    browser.state(dirs)  # this tab is still there
    if _find_embeddings(dirs).keys() != listed.keys():
        st.rerun()
    plain.caption(f"New files in {dirs.runs} are listed automatically.")
