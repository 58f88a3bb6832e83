"""Small copies of images."""

from __future__ import annotations

import functools
import io
from pathlib import Path

from PIL import Image

from gm.data import image_reader
from gm.errors import UserError


def of_image(path: Path, side: int) -> bytes | None:
    """Return the image at `path` as a JPEG of at most `side` pixels; None if it cannot be read."""
    try:
        return _thumbnail(path, side, path.stat().st_mtime_ns)
    except OSError:
        return None


@functools.lru_cache(maxsize=500)
def _thumbnail(path: Path, side: int, _modified: int) -> bytes | None:
    try:
        image = image_reader.read_image(path).rgb
    except UserError:
        return None
    image.thumbnail((side, side), Image.Resampling.BOX)
    content = io.BytesIO()
    image.save(content, "JPEG", quality=90)
    return content.getvalue()
