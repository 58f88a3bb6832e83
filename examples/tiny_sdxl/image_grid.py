"""Grid of images with labelled rows, for the docs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Pixels
_SIDE = 128  # of an image
_GAP = 8  # between images
_LINE = 22  # height of a label


def image_grid(rows: Mapping[str, Sequence[Image.Image | np.ndarray]]) -> Image.Image:
    """Return the rows of images, each under its label."""
    columns = max(map(len, rows.values()))
    width, height = columns * (_SIDE + _GAP) + _GAP, len(rows) * (_SIDE + _LINE + _GAP) + _GAP
    canvas = Image.new("RGB", (width, height), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(13)
    for row, (label, images) in enumerate(rows.items()):
        top = row * (_SIDE + _LINE + _GAP) + _GAP // 2
        pen.text((_GAP, top), label, fill=(40, 40, 40), font=font)
        for column, pixels in enumerate(images):
            image = Image.fromarray(pixels) if isinstance(pixels, np.ndarray) else pixels
            large = image.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
            canvas.paste(large, (_GAP + column * (_SIDE + _GAP), top + _LINE))
    return canvas
