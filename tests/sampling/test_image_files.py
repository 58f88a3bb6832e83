"""PNG files, and the generation parameters in them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from gm.errors import UserError
from gm.sampling import image_files


def test_a_grid_has_rows_and_white_where_images_are_missing() -> None:
    images = [np.full((2, 3, 3), k, np.uint8) for k in range(3)]
    grid = image_files.make_grid(images, 2)
    assert grid.shape == (4, 6, 3)
    assert [grid[0, 0, 0], grid[0, 3, 0], grid[2, 0, 0], grid[2, 3, 0]] == [0, 1, 2, 255]


def test_saving_never_overwrites_and_stores_the_parameters(tmp_path: Path) -> None:
    parameters = {"prompt": "grün <toy> \U0001f408", "seed": 3, "nested": {"a": [1, None]}}
    image = np.random.default_rng(0).integers(0, 255, (4, 5, 3), dtype=np.uint8)
    (tmp_path / "image_00007.png").write_bytes(b"mine")
    first = image_files.save(image, parameters, tmp_path, "image")
    second = image_files.save(image, parameters, tmp_path, "image")
    assert [first.name, second.name] == ["image_00008.png", "image_00009.png"]
    assert (tmp_path / "image_00007.png").read_bytes() == b"mine"
    assert image_files.read_parameters(first) == parameters
    assert np.array_equal(np.asarray(Image.open(first)), image)
    Image.fromarray(image).save(tmp_path / "bare.png")
    with pytest.raises(UserError, match="holds no generation parameters"):
        image_files.read_parameters(tmp_path / "bare.png")


def test_parameters_under_the_earlier_key_are_read(tmp_path: Path) -> None:
    parameters = {"prompt": "a cat", "seed": 3, "vae_tile": 512, "model": {"unet": {"middle_depth": 1}}}
    text = PngImagePlugin.PngInfo()
    text.add_itxt("recipe", json.dumps(parameters))
    Image.new("RGB", (4, 4)).save(tmp_path / "earlier.png", pnginfo=text)
    expected = {"prompt": "a cat", "seed": 3, "vae_tile_size": 512}
    assert image_files.read_parameters(tmp_path / "earlier.png") == expected
