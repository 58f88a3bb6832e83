"""Images of the last comparison on the page Compare, in rows and columns."""

from __future__ import annotations

import streamlit as st

from demo.app import browser, plain
from demo.app.app_dirs import AppDirs
from demo.app.server import thumbnails
from demo.app.server.comparison import Comparison, compose

KEY = "last comparison"  # in the session state
_SIDE = 768  # pixels of an image on the page, at most
_WIDE, _NARROW = 240, 168  # of a column: three wide ones at 1280 pixels, two narrow ones on a phone
_FEW = 3  # columns


def show(dirs: AppDirs) -> None:
    """Show the images of the last comparison that are there; they stay when the server is started again."""
    folder = dirs.images(browser.identify()) / "compare"
    comparison = Comparison.read(st.session_state.get(KEY), folder)
    if comparison is None or not any(comparison.folder.glob("*/image_*.png")):
        return
    if comparison.rows == [""] and len(comparison.columns) == 2:
        _side_by_side(comparison)
    else:
        _rows(comparison)
    st.download_button(
        "Download as one image",
        lambda: compose(comparison),
        f"{comparison.folder.name}.png",
        "image/png",
        icon=":material/download:",
        key="download comparison",
    )


def _side_by_side(comparison: Comparison) -> None:
    for number, (column, label) in enumerate(zip(st.columns(2), comparison.columns, strict=True)):
        with column:
            st.subheader(plain.escape(label), divider="gray")
            _images(comparison, 0, number, "stretch")


def _rows(comparison: Comparison) -> None:
    width = _WIDE if len(comparison.columns) <= _FEW else _NARROW
    for row, row_label in enumerate(comparison.rows):
        if row_label:
            st.markdown(f"**{plain.escape(row_label)}**")
        with st.container(horizontal=True, gap="small"):
            for column, label in enumerate(comparison.columns):
                with st.container(width=width, gap="xsmall"):
                    plain.caption(label)
                    _images(comparison, row, column, width)


def _images(comparison: Comparison, row: int, column: int, width: int | str) -> None:
    for path in comparison.images(row, column):
        content = thumbnails.of_image(path, _SIDE)
        if content is None:
            plain.error(f"{path.name} is damaged")
        else:
            st.image(content, width=width)  # type: ignore[arg-type]
