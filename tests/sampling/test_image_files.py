"""Images on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gm.errors import UserError
from gm.sampling import image_files


def test_grid_lays_out_in_rows_and_leaves_the_rest_white() -> None:
    images = [np.full((2, 3, 3), k, np.uint8) for k in range(3)]
    sheet = image_files.make_grid(images, 2)
    assert sheet.shape == (4, 6, 3)
    assert [sheet[0, 0, 0], sheet[0, 3, 0], sheet[2, 0, 0], sheet[2, 3, 0]] == [0, 1, 2, 255]


def test_saving_never_overwrites_and_keeps_the_recipe(tmp_path: Path) -> None:
    recipe = {"prompt": "grün <toy> \U0001f408", "seed": 3, "nested": {"a": [1, None]}}
    image = np.random.default_rng(0).integers(0, 255, (4, 5, 3), dtype=np.uint8)
    (tmp_path / "image_00007.png").write_bytes(b"mine")
    first = image_files.save(image, recipe, tmp_path, "image")
    second = image_files.save(image, recipe, tmp_path, "image")
    assert [first.name, second.name] == ["image_00008.png", "image_00009.png"]
    assert (tmp_path / "image_00007.png").read_bytes() == b"mine"
    assert image_files.read_parameters(first) == recipe
    assert np.array_equal(np.asarray(Image.open(first)), image)
    Image.fromarray(image).save(tmp_path / "bare.png")
    with pytest.raises(UserError, match="holds no recipe"):
        image_files.read_parameters(tmp_path / "bare.png")
