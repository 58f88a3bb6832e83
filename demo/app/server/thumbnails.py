"""Small copies of images, and the image that shows what an embedding is of."""

from __future__ import annotations

import functools
import io
from pathlib import Path

from PIL import Image

from demo.app.server import uploads
from gm.data import image_reader
from gm.errors import UserError
from gm.training.output_dir import PREVIEWS

_SUFFIXES = (".preview.png", ".png", ".preview.jpg", ".jpg", ".jpeg", ".webp")  # as AUTOMATIC1111 looks for them


def of_image(path: Path, side: int, square: bool = False) -> bytes | None:
    """Return the image at `path` as a JPEG of at most `side` pixels; None if it cannot be read or is too large.

    `square`: its left upper square alone, which of a grid in one row is the first image.
    """
    try:
        stat = path.stat()
        return _thumbnail(path, side, square, stat.st_mtime_ns, stat.st_size)
    except OSError:
        return None


def of_embedding(path: Path) -> Path | None:
    """Return the image of an embedding file: one of its name beside it, or the last sample images of its run."""
    for suffix in _SUFFIXES:
        image = path.with_name(path.stem + suffix)
        if image.is_file():
            return image
    try:
        images = [each for each in (path.parent / PREVIEWS).glob("step_*.png") if each.stem[5:].isdecimal()]
    except OSError:
        return None
    return max(images, key=lambda each: int(each.stem[5:]), default=None)


@functools.lru_cache(maxsize=500)
def _thumbnail(path: Path, side: int, square: bool, modified: int, size: int) -> bytes | None:
    """Return the thumbnail of a file that was last `modified` at that time and has that `size`."""
    if size > uploads.MAX_IMAGE_BYTES:
        return None
    try:
        with image_reader.open_image(path) as file:
            if file.width * file.height > uploads.MAX_PIXELS:
                return None
        image = image_reader.read_image(path).rgb
    except UserError:
        return None
    if square:
        image = image.crop((0, 0, min(image.size), min(image.size)))
    image.thumbnail((side, side), Image.Resampling.BOX)
    content = io.BytesIO()
    image.save(content, "JPEG", quality=90)
    return content.getvalue()
