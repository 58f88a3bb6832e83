"""Gallery of the browser's images, each with its generation parameters."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import streamlit as st

from demo.app import messages, plain, reuse
from demo.app.app_dirs import AppDirs
from demo.app.server import gallery_files, image_texts
from gm.errors import UserError
from gm.sampling import image_files

_PER_PAGE = 12
_COLUMNS = 4
_PAGE_KEY = "gallery page"  # of the number of the page, from 1, in the session state
_ERROR_KEY = "gallery error"


def show(folder: Path, dirs: AppDirs) -> None:
    """Show a page of the images of `folder`, the newest first."""
    paths = gallery_files.images(folder)
    if not paths:
        st.caption("Your images appear here.")
        return
    st.subheader("Generated images", divider="gray")
    if error := st.session_state.pop(_ERROR_KEY, ""):
        messages.error(error, dirs)
    page_paths = _page(paths)
    for first in range(0, len(page_paths), _COLUMNS):
        for column, path in zip(st.columns(_COLUMNS), page_paths[first : first + _COLUMNS], strict=False):
            with column:
                _card(path, dirs)
    _footer(paths)


def _page(paths: list[Path]) -> list[Path]:
    """Return the images of the page that was chosen; its number follows when images are deleted."""
    number = st.session_state.get(_PAGE_KEY, 1)
    last = math.ceil(len(paths) / _PER_PAGE)
    st.session_state[_PAGE_KEY] = number = min(max(number if isinstance(number, int) else 1, 1), last)
    return paths[(number - 1) * _PER_PAGE : number * _PER_PAGE]


def _footer(paths: list[Path]) -> None:
    """Show the buttons that turn pages, and the download of all images."""
    number, last = st.session_state[_PAGE_KEY], math.ceil(len(paths) / _PER_PAGE)
    with st.container(horizontal=True, vertical_alignment="center"):
        if last > 1:
            st.button("Newer", key="newer images", disabled=number == 1, on_click=_turn, args=(-1,))
            st.caption(plain.escape(f"Page {number} of {last}"), width="content")
            st.button("Older", key="older images", disabled=number == last, on_click=_turn, args=(1,))
        if st.button("Download all", icon=":material/folder_zip:", key="pack images"):
            _offer_download(paths)


def _offer_download(paths: list[Path]) -> None:
    try:
        archive, count = gallery_files.pack(paths)
    except UserError as error:
        plain.error(error)
        return
    name = "Save images.zip" if count == len(paths) else f"Save the {count} newest"
    st.download_button(
        plain.escape(name), archive, "images.zip", "application/zip", key="download images", on_click="ignore"
    )


def _turn(step: int) -> None:
    st.session_state[_PAGE_KEY] += step


def _card(path: Path, dirs: AppDirs) -> None:
    try:
        content = path.read_bytes()
        parameters = image_files.read_parameters(path)
    except OSError as error:
        plain.error(f"cannot read {path.name}: {error.strerror}")
    except UserError as error:
        messages.error(error, dirs)
    else:
        st.image(content, width="stretch")
        plain.caption(f"{parameters.get('prompt', '')} · seed {parameters.get('seed', 'unknown')}")
        _buttons(path, content, parameters)
        return
    _delete_button(path)


def _buttons(path: Path, content: bytes, parameters: dict[str, Any]) -> None:
    with st.container(horizontal=True):
        st.download_button(
            ":material/download:", content, path.name, "image/png", key=f"download {path}", help="Download"
        )
        st.button(
            ":material/replay:",
            key=f"use parameters {path}",
            help="Use these parameters",
            on_click=reuse.apply_parameters,
            args=(parameters, path.name),
        )
        menu = "Generation parameters, send to img2img or inpaint, delete"
        if st.button(":material/more_horiz:", key=f"menu {path}", help=menu):
            _menu(path, content, parameters)


@st.dialog("Image", width="large")
def _menu(path: Path, content: bytes, parameters: dict[str, Any]) -> None:
    """Show an image with its parameters and what can be done with it; each of that closes the dialog."""
    left, right = st.columns(2)
    left.image(content, width="stretch")
    with right:
        # With a button that copies them.
        st.code(image_texts.infotext(path, parameters), language=None, wrap_lines=True)
        is_done = False
        for task in ("img2img", "inpaint"):
            arguments = (task, path, parameters)
            label = f"Send to {task}"
            is_done |= st.button(plain.escape(label), key=f"{task} {path}", on_click=reuse.send_to, args=arguments)
        if _delete_button(path) or is_done:
            st.rerun()


def _delete_button(path: Path) -> bool:
    return st.button("Delete", key=f"delete {path}", icon=":material/delete:", on_click=_delete, args=(path,))


def _delete(path: Path) -> None:
    try:
        gallery_files.delete(path)
    except UserError as error:
        st.session_state[_ERROR_KEY] = str(error)
