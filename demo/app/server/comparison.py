"""Grids of images that differ in one or two options: values of an axis, folders of the cells, all in one image."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from demo.app.server import limits
from gm.errors import UserError

MAX_VALUES = 20  # of an axis
_NUMBER = r"[+-]?\d+(?:\.\d+)?"
# As in AUTOMATIC1111's X/Y/Z plot (scripts/xyz_grid.py there): 1-5, 1-5 (+2), 1-10 [5]
_RANGE = re.compile(rf"({_NUMBER})\s*-\s*({_NUMBER})(?:\s*\(([+-]\d+(?:\.\d+)?)\)|\s*\[(\d+)\])?")
_SIDE = 512  # pixels of an image in the grid that is downloaded
_MARGIN, _TEXT = 12, 22
_FONT_SIZE = 16
_MAX_LABEL = 300  # pixels of a row's label


@dataclass(frozen=True)
class Comparison:
    """A comparison that was asked for: labels of its rows and columns, and its folder with a folder for each cell."""

    rows: list[str]
    columns: list[str]
    folder: Path

    def cell_folder(self, row: int, column: int) -> Path:
        """Return the folder of the images of a cell."""
        return self.folder / f"{row * len(self.columns) + column:03d}"

    def images(self, row: int, column: int) -> list[Path]:
        """Return the images of a cell that are there, in the order of their seeds."""
        return sorted(self.cell_folder(row, column).glob("image_*.png"))

    def as_dict(self) -> dict[str, Any]:
        """Return what `read` reads."""
        return {"rows": self.rows, "columns": self.columns, "folder": str(self.folder)}

    @classmethod
    def read(cls, value: Any, parent: Path) -> Comparison | None:
        """Return the comparison that was stored as `value`; None if it is damaged or not in the folder `parent`."""
        if not isinstance(value, dict):
            return None
        rows, columns, folder = value.get("rows"), value.get("columns"), value.get("folder")
        labels = _labels(rows), _labels(columns)
        if not all(labels) or not isinstance(folder, str):
            return None
        path = Path(folder)
        return cls(*labels, path) if path.parent == parent and ".." not in path.parts else None


def parse_numbers(text: str, kind: type, low: float, high: float) -> list[Any]:
    """Return the numbers in "3, 5, 7.5", "1-5", "1-5 (+2)" (in steps of 2) or "1-10 [4]" (4 of them).

    UserError for other text, numbers outside `low` to `high`, none, and more than `MAX_VALUES`.
    """
    values: list[float] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        values += _range(part, kind)
        if len(values) > MAX_VALUES:
            raise UserError(f"{text!r} are more than {MAX_VALUES} values; give fewer")
    if not values:
        raise UserError("an axis has no values; give some, such as 3, 5, 7")
    numbers = [kind(round(value, 6)) for value in values]
    for number in numbers:
        if not low <= number <= high:
            raise UserError(f"{number:g} is not possible here; it must be from {low:g} to {high:g}")
    return list(dict.fromkeys(numbers))


def _range(part: str, kind: type) -> list[float]:
    match = _RANGE.fullmatch(part)
    if not match:
        if re.fullmatch(_NUMBER, part) and (kind is float or "." not in part):
            return [float(part)]
        example = "3, 5, 7.5 or 1-10 [4]" if kind is float else "10, 20, 40 or 1-10 (+3)"
        raise UserError(f"{part!r} is not a {'number' if kind is float else 'whole number'} or range; write {example}")
    first, last = float(match[1]), float(match[2])
    if match[4]:
        count = min(int(match[4]), MAX_VALUES + 1)
        return [first + (last - first) * k / max(count - 1, 1) for k in range(count)]
    step = float(match[3]) if match[3] else (1.0 if last >= first else -1.0)
    if step == 0 or (last - first) * step < 0:
        raise UserError(f"{part!r} never ends; give a step towards {last:g}")
    count = min(int((last - first) / step + 1e-9) + 1, MAX_VALUES + 1)
    return [first + k * step for k in range(count)]


def compose(comparison: Comparison) -> bytes:
    """Return a PNG of all images in their rows and columns, with the labels."""
    cells = [
        [_cell(comparison.images(row, column)) for column in range(len(comparison.columns))]
        for row in range(len(comparison.rows))
    ]
    width = max(cell.width for row in cells for cell in row) + _MARGIN
    heights = [max(cell.height for cell in row) + _MARGIN for row in cells]
    font = ImageFont.load_default(_FONT_SIZE)
    names = [_fitting(label, _MAX_LABEL, font) for label in comparison.rows]
    left = 2 * _MARGIN + max(int(font.getlength(name)) for name in names)
    top = _TEXT + 2 * _MARGIN
    canvas = Image.new("RGB", (left + width * len(comparison.columns), top + sum(heights)), "white")
    pen = ImageDraw.Draw(canvas)
    for column, label in enumerate(comparison.columns):
        pen.text((left + column * width, _MARGIN), _fitting(label, width, font), "black", font)
    for row, label in enumerate(names):
        pen.text((_MARGIN, top + heights[row] // 2 - _TEXT), label, "black", font)
        for column, cell in enumerate(cells[row]):
            canvas.paste(cell, (left + column * width, top))
        top += heights[row]
    content = io.BytesIO()
    canvas.save(content, "PNG")
    return content.getvalue()


def _cell(paths: Sequence[Path]) -> Image.Image:
    """Return the images of a cell, one below the other; an empty one for none."""
    images = []
    for path in paths:
        with Image.open(path) as file:
            image = file.convert("RGB")
        image.thumbnail((_SIDE, _SIDE))
        images.append(image)
    if not images:
        return Image.new("RGB", (64, 64), "lightgray")
    cell = Image.new("RGB", (max(image.width for image in images), sum(image.height for image in images)))
    top = 0
    for image in images:
        cell.paste(image, (0, top))
        top += image.height
    return cell


def _fitting(text: str, width: int, font: Any) -> str:
    """Return as much of `text` as fits into a column."""
    while text and font.getlength(text) > width - _MARGIN:
        text = text[:-1]
    return text


def _labels(value: Any) -> list[str]:
    """Return a list of labels; [] for anything else."""
    if not isinstance(value, list) or len(value) > limits.MAX_IMAGES:
        return []
    return value if all(isinstance(each, str) for each in value) else []
