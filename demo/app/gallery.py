"""Gallery of the session's images, each with its generation parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import streamlit as st

from demo.app import options
from gm.errors import UserError
from gm.sampling import image_files

_MAX_IMAGES = 24
_COLUMNS = 4


def show(folder: Path) -> None:
    """Show the newest images of `folder`."""
    paths = sorted(folder.glob("image_*.png"), reverse=True)
    if not paths:
        st.caption(f"Images appear here and are saved in {folder}")
        return
    st.subheader("Generated images", divider="gray")
    for first in range(0, min(len(paths), _MAX_IMAGES), _COLUMNS):
        for column, path in zip(st.columns(_COLUMNS), paths[first : first + _COLUMNS], strict=False):
            with column:
                _card(path)
    if len(paths) > _MAX_IMAGES:
        st.caption(f"{len(paths) - _MAX_IMAGES} older images are in {folder}")


def _card(path: Path) -> None:
    try:
        parameters = image_files.read_parameters(path)
    except UserError as error:
        st.error(str(error))
        return
    st.image(str(path), width="stretch")
    st.caption(f"{_escape_markdown(parameters['prompt'])} · seed {parameters['seed']}")
    with st.container(horizontal=True):
        st.download_button(
            ":material/download:", path.read_bytes(), path.name, "image/png", key=f"download {path}", help="Download"
        )
        with st.popover(":material/info:", help="Generation parameters"):
            st.json({name: value for name, value in parameters.items() if name != "model"})
        st.button(
            ":material/replay:",
            key=f"use parameters {path}",
            help="Use these parameters",
            on_click=options.apply_parameters,
            args=(parameters,),
        )


def _escape_markdown(text: Any) -> str:
    """Return `text` with every character that Markdown interprets escaped."""
    return "".join(f"\\{sign}" if sign in "\\`*_{}[]()<>#+-.!|~:$" else sign for sign in str(text))
