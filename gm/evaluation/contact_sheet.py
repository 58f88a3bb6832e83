"""Contact sheet: the real images, then a row of images for each prompt, one of each embedding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from gm.evaluation.prompts import EvaluationPrompt

_SIDE = 160  # pixels of a thumbnail
_GAP = 6
_LINE = 18  # pixels of a line of text
_MAX_IMAGES = 4  # images of a prompt, or real ones of a kind, in a row

Row = tuple[str, list[Image.Image]]


def render(
    real: Mapping[str, Sequence[Image.Image]],
    prompts: Sequence[EvaluationPrompt],
    images: Mapping[str, Sequence[Image.Image]],
) -> np.ndarray:
    """Return the sheet, uint8 [H, W, 3].

    `images` are those of each embedding by name, equally many of each prompt. One embedding has several images of a
    prompt in its row, several have one each, all from the same noise.
    """
    rows: list[Row] = [(f"{kind} images", list(of_kind[:_MAX_IMAGES])) for kind, of_kind in real.items()]
    names = list(images)
    if len(names) > 1:
        rows.append((", ".join(f"{number}: {name}" for number, name in enumerate(names, 1)), []))
    for number, prompt in enumerate(prompts):
        per_prompt = [len(of_name) // len(prompts) for of_name in images.values()]
        limit = _MAX_IMAGES if len(names) == 1 else 1
        row = [
            image
            for count, of_name in zip(per_prompt, images.values(), strict=True)
            for image in of_name[number * count : number * count + min(count, limit)]
        ]
        rows.append((f"{prompt.group}: {prompt.text or prompt.prompt}", row))
    return _render_rows(rows)


def _render_rows(rows: Sequence[Row]) -> np.ndarray:
    columns = max(len(images) for _, images in rows)
    width = max(columns, 2) * (_SIDE + _GAP) + _GAP
    heights = [_LINE + (_SIDE + _GAP if images else 0) for _, images in rows]
    sheet = Image.new("RGB", (width, sum(heights) + _GAP), "white")
    canvas, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    top = 0
    for (label, images), height in zip(rows, heights, strict=True):
        canvas.text((_GAP, top + 2), _fitting(label, font, width - 2 * _GAP), fill="black", font=font)
        for column, image in enumerate(images):
            thumbnail = ImageOps.contain(image, (_SIDE, _SIDE), Image.Resampling.LANCZOS)
            sheet.paste(thumbnail, (_GAP + column * (_SIDE + _GAP), top + _LINE))
        top += height
    return np.asarray(sheet)


def _fitting(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> str:
    """Return `text`, of characters that the font has, cut to `width` pixels."""
    text = text.encode("latin-1", "replace").decode("latin-1")
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."
