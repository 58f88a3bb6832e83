"""The sidebar: which model, and which learned words."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import streamlit as st

from demo.app import options
from demo.app.places import Places
from demo.app.server import embedding_list, uploads
from gm import config as configuration
from gm.config import Config
from gm.embeddings import io as embedding_io
from gm.embeddings.embedding import Embedding
from gm.errors import UserError

_SECONDS = 4  # between looks for new words


@dataclass(frozen=True)
class Choice:
    """The model's config and its YAML file, and the embedding files chosen, with the words they hold."""

    config: Config
    config_path: str
    files: dict[Path, list[Embedding]]

    @property
    def words(self) -> list[str]:
        return [concept.placeholder_token for found in self.files.values() for concept in found]

    def drawing(self, **sampling: Any) -> Config:
        """Return the config that draws as `sampling` says, with all that is chosen."""
        chosen = {**sampling, "textual_inversion_weight": [str(path) for path in self.files]}
        config = dataclasses.replace(self.config, sampling=dataclasses.replace(self.config.sampling, **chosen))
        configuration.check(config)
        return config


def sidebar(specs: dict[str, dict[str, Any]], places: Places) -> Choice:
    """Show the sidebar and return what is chosen there; it tells what cannot be used, and the page goes on without."""
    with st.sidebar:
        st.header("Model", divider="gray")
        there = [name for name, spec in specs.items() if Path(spec["ckpt"]).exists()]
        names = list(specs)
        version = st.selectbox("version", names, index=names.index(there[0]) if there else 0, key="version")
        spec = specs[version]
        weight = st.text_input("weights", spec["ckpt"], key=f"weight of {version}", help="a .ckpt or .safetensors file")
        weight = weight.strip() or spec["ckpt"]
        if not Path(weight).exists():
            st.warning(f"There is not a file {weight}. README.md says how SDXL's weights are converted.")
        config = configuration.load(spec["config"], {"run": {"weight": weight}})
        with st.expander("How it runs"):
            config = dataclasses.replace(config, run=dataclasses.replace(config.run, **options.run(config.run)))
        st.header("Learned words", divider="gray")
        chosen = _words(spec, places)
    sampling = dataclasses.replace(config.sampling, height=None, width=None)
    if (spec["H"], spec["W"]) != (config.model.resolution,) * 2:
        sampling = dataclasses.replace(sampling, height=spec["H"], width=spec["W"])
    return Choice(dataclasses.replace(config, sampling=sampling), spec["config"], chosen)


def _words(spec: dict[str, Any], places: Places) -> dict[Path, list[Embedding]]:
    there = embedding_list.found(places.runs)
    found = there | {str(path): Path(path) for path in spec["textual_inversion_weight"]}
    kept = [name for name in st.session_state.get("words", spec["textual_inversion_weight"]) if name in found]
    kept = _of_recipe(found, kept)
    new = st.session_state.pop("new file", None)
    st.session_state.words = [*kept, *(name for name, path in found.items() if path == new and name not in kept)]
    names = st.multiselect("in use", list(found), key="words", placeholder="none yet: learn one, or send a file")
    _watch(places.runs, there)
    sent = st.file_uploader(
        "send an embedding file", key="embedding file", help="of this toolkit, diffusers, AUTOMATIC1111 …"
    )
    if sent is not None and st.session_state.get("sent") != sent.file_id:
        st.session_state.sent = sent.file_id
        try:
            use(uploads.concept(sent.getvalue(), sent.name, places.uploaded))
        except UserError as error:
            st.error(str(error))
    try:
        return {found[name]: embedding_io.load_all(found[name]) for name in names}
    except UserError as error:
        st.error(str(error))
        return {}


def _of_recipe(found: dict[str, Path], kept: list[str]) -> list[str]:
    """Return the names of the files that a recipe asks for, once after it does; `kept` at any other time."""
    if "files of recipe" not in st.session_state:
        return kept
    asked = [Path(path) for path in st.session_state.pop("files of recipe")]
    for path in asked:
        if path not in found.values():
            st.warning(f"The recipe needs {path}, which is not there; send it below, or learn the word again.")
    return [name for name, path in found.items() if path in asked]


def use(path: Path) -> None:
    """Take an embedding file in the watched folder into use, and show the page anew."""
    st.session_state["new file"] = path
    st.rerun(scope="app")


@st.fragment(run_every=_SECONDS)
def _watch(folder: Path, shown: dict[str, Path]) -> None:
    """Show the page anew when a word has come or gone."""
    if embedding_list.found(folder).keys() != shown.keys():
        st.rerun()
    st.caption(f"new files in `{folder}` appear here by themselves")
