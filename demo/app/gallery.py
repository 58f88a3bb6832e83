"""Gallery of the session's images, each with its generation parameters."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from demo.app import options, plain
from gm.errors import UserError
from gm.sampling import image_files

_MAX_IMAGES = 24
_COLUMNS = 4


def show(folder: Path) -> None:
    """Show the newest images of `folder`."""
    paths = sorted((path for path in folder.glob("image_*.png") if path.is_file()), reverse=True)
    if not paths:
        plain.caption(f"Images appear here and are saved in {folder}")
        return
    st.subheader("Generated images", divider="gray")
    for first in range(0, min(len(paths), _MAX_IMAGES), _COLUMNS):
        for column, path in zip(st.columns(_COLUMNS), paths[first : first + _COLUMNS], strict=False):
            with column:
                _card(path)
    if len(paths) > _MAX_IMAGES:
        plain.caption(f"{len(paths) - _MAX_IMAGES} older images are in {folder}")


def _card(path: Path) -> None:
    try:
        content = path.read_bytes()
        parameters = image_files.read_parameters(path)
    except OSError as error:
        plain.error(f"cannot read {path.name}: {error.strerror}")
        return
    except UserError as error:
        plain.error(error)
        return
    st.image(content, width="stretch")
    plain.caption(f"{parameters.get('prompt', '')} · seed {parameters.get('seed', 'unknown')}")
    with st.container(horizontal=True):
        st.download_button(
            ":material/download:", content, path.name, "image/png", key=f"download {path}", help="Download"
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
