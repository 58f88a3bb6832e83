"""Brush that paints a mask over an image, in the browser: a component of Streamlit, one file without dependencies."""

from __future__ import annotations

import base64
import binascii
import functools
from pathlib import Path
from typing import Any

import streamlit.components.v1 as components

from demo.app.server import thumbnails

_SIDE = 1024  # of the image in the browser; the mask has its size, and is scaled to that of the image afterwards
_PREFIX = "data:image/png;base64,"
_MAX_TEXT = 4 * 10**6  # characters of a mask

_component = components.declare_component("mask_brush", path=str(Path(__file__).parent))


def show(image: Path, mask: Path | None, key: str) -> bytes | None:
    """Show the brush over `image`, with `mask` as it is at first; return the mask that was painted, None if none was.

    The mask is a PNG, white where to inpaint, from the browser: it may hold anything.
    """
    thumbnail = thumbnails.of_image(image, _SIDE)
    if thumbnail is None:
        return None
    strokes = None if mask is None else thumbnails.of_image(mask, _SIDE)
    value = _component(image=_data_url(thumbnail), mask=_data_url(strokes) if strokes else "", key=key, default=None)
    return decode(value)


def decode(value: Any) -> bytes | None:
    """Return the bytes of a data URL of a PNG; None for anything else."""
    if not isinstance(value, str) or not value.startswith(_PREFIX) or len(value) > _MAX_TEXT:
        return None
    try:
        return base64.b64decode(value.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        return None


@functools.lru_cache(maxsize=16)
def _data_url(jpeg: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode('ascii')}"
