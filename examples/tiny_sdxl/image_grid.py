"""Grid of images with labelled rows, for the docs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Pixels
_GAP = 8  # between images
_LINE = 22  # height of a label


def image_grid(rows: Mapping[str, Sequence[Image.Image | np.ndarray]], side: int = 128) -> Image.Image:
    """Return the rows of images of `side` pixels, each row under its label."""
    columns = max(map(len, rows.values()))
    width, height = columns * (side + _GAP) + _GAP, len(rows) * (side + _LINE + _GAP) + _GAP
    canvas = Image.new("RGB", (width, height), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(13)
    for row, (label, images) in enumerate(rows.items()):
        top = row * (side + _LINE + _GAP) + _GAP // 2
        pen.text((_GAP, top), label, fill=(40, 40, 40), font=font)
        for column, pixels in enumerate(images):
            image = Image.fromarray(pixels) if isinstance(pixels, np.ndarray) else pixels
            large = image.resize((side, side), Image.Resampling.LANCZOS)
            canvas.paste(large, (_GAP + column * (side + _GAP), top + _LINE))
    return canvas
