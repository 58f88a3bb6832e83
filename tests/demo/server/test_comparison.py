"""Grids of images: values of the axes, the folders of the cells, and all of them in one image."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from demo.app.server.comparison import Comparison, compose, parse_numbers
from gm.errors import UserError


@pytest.mark.parametrize(
    ("text", "kind", "values"),
    [
        ("3, 5, 7.5", float, [3.0, 5.0, 7.5]),
        (" 20 ,10,20, ", int, [20, 10]),
        ("1-5", int, [1, 2, 3, 4, 5]),
        ("1-5 (+2)", int, [1, 3, 5]),
        ("5 - 1 (-2)", int, [5, 3, 1]),
        ("3-1", int, [3, 2, 1]),
        ("1-10 [4]", float, [1.0, 4.0, 7.0, 10.0]),
        ("0.6-1.4 (+0.4)", float, [0.6, 1.0, 1.4]),
        ("7, 1-2", int, [7, 1, 2]),
    ],
)
def test_values_of_an_axis(text: str, kind: type, values: list[Any]) -> None:
    assert parse_numbers(text, kind, 0, 100) == values
    assert all(type(value) is kind for value in parse_numbers(text, kind, 0, 100))


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        (" , ", float, "an axis has no values; give some"),
        ("many", float, "'many' is not a number or range; write 3, 5, 7.5"),
        ("2.5", int, "'2.5' is not a whole number or range; write 10, 20"),
        ("nan", float, "'nan' is not a number"),
        ("1-5 (-1)", int, "'1-5 \\(-1\\)' never ends; give a step towards 5"),
        ("1-5 (+0)", int, "never ends"),
        ("5, 200", int, "200 is not possible here; it must be from 0 to 100"),
        ("1-90", int, "'1-90' are more than 20 values; give fewer"),
        ("0-100 [999999999]", float, "are more than 20 values"),
        ("0-100 (+0.0000001)", float, "are more than 20 values"),
    ],
)
def test_values_that_cannot_be_are_one_line(text: str, kind: type, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_numbers(text, kind, 0, 100)


def test_a_comparison_finds_the_images_of_its_cells(tmp_path: Path) -> None:
    stored = Comparison(["a", "b"], ["x", "y", "z"], tmp_path / "one").as_dict()
    comparison = Comparison.read(stored, tmp_path)
    assert comparison is not None
    folder = comparison.cell_folder(1, 2)
    assert folder == tmp_path / "one" / "005"
    folder.mkdir(parents=True)
    for name, color in (("image_00001.png", "blue"), ("image_00000.png", "red"), ("grid_00000.png", "black")):
        Image.new("RGB", (16, 8), color).save(folder / name)
    assert [path.name for path in comparison.images(1, 2)] == ["image_00000.png", "image_00001.png"]
    assert comparison.images(0, 0) == []
    image = Image.open(io.BytesIO(compose(comparison))).convert("RGB")
    left = image.width - 76  # a column is as wide as its widest cell, with a margin
    assert image.getpixel((left + 4, image.height - 76 + 4)) == (255, 0, 0)
    assert image.getpixel((left + 4, image.height - 76 + 12)) == (0, 0, 255)


@pytest.mark.parametrize(
    "stored",
    [None, 5, {}, {"rows": [], "columns": ["x"]}, {"rows": ["a"], "columns": [3]}, {"rows": ["a"], "columns": "xy"}],
)
def test_a_damaged_comparison_is_none(stored: Any, tmp_path: Path) -> None:
    stored = {"folder": str(tmp_path / "one"), **stored} if isinstance(stored, dict) else stored
    assert Comparison.read(stored, tmp_path) is None


def test_images_outside_of_the_folder_of_the_browser_are_not_shown(tmp_path: Path) -> None:
    for folder in ("/etc", str(tmp_path / "mine" / ".." / "theirs"), str(tmp_path / "theirs")):
        assert Comparison.read({"rows": ["a"], "columns": ["x"], "folder": folder}, tmp_path / "mine") is None
