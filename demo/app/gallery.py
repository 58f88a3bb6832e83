"""The images a visitor has drawn, each with its recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import streamlit as st

from demo.app import options
from gm.errors import UserError
from gm.sampling import image_files

_SHOWN, _COLUMNS = 24, 4


def show(folder: Path) -> None:
    """Show the newest images of `folder`."""
    paths = sorted(folder.glob("image_*.png"), reverse=True)
    if not paths:
        st.caption("What you draw appears here, and stays in " + str(folder))
        return
    st.subheader("Drawn", divider="gray")
    for first in range(0, min(len(paths), _SHOWN), _COLUMNS):
        for column, path in zip(st.columns(_COLUMNS), paths[first : first + _COLUMNS], strict=False):
            with column:
                _card(path)
    if len(paths) > _SHOWN:
        st.caption(f"{len(paths) - _SHOWN} older ones are in {folder}")


def _card(path: Path) -> None:
    try:
        recipe = image_files.read_parameters(path)
    except UserError as error:
        st.error(str(error))
        return
    st.image(str(path), width="stretch")
    st.caption(f"{_escaped(recipe['prompt'])} · seed {recipe['seed']}")
    with st.container(horizontal=True):
        st.download_button(":material/download:", path.read_bytes(), path.name, "image/png", key=f"get {path}")
        with st.popover(":material/receipt_long:"):
            shown = {name: value for name, value in recipe.items() if name != "model"}
            st.json(shown)
        st.button(
            ":material/replay:", key=f"again {path}", help="use this recipe", on_click=options.fill, args=(recipe,)
        )


def _escaped(text: Any) -> str:
    """Return `text` as Markdown shows it, without taking it for Markdown."""
    return "".join(f"\\{sign}" if sign in "\\`*_{}[]()<>#+-.!|~:$" else sign for sign in str(text))
