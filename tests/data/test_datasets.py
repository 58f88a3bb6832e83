"""datasets/: the shipped images are those of the script, small, and ready for training."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from examples.tiny_sdxl import render_datasets
from gm.data import image_folder

DATASETS = Path(__file__).parents[2] / "datasets"


def shipped():
    return sorted(p.relative_to(DATASETS) for p in DATASETS.rglob("*.png"))


def test_the_script_draws_the_shipped_images(tmp_path):
    rendered = render_datasets.render(tmp_path)
    assert sorted(p.relative_to(tmp_path) for p in rendered) == shipped()
    for path in shipped():
        old, new = (np.asarray(Image.open(root / path), np.float32) for root in (DATASETS, tmp_path))
        assert old.shape == new.shape
        # Other processors round sines differently and other libjpegs pack differently: a speck here and there.
        difference = np.abs(old - new)
        assert difference.mean() < 0.5, path
        assert (difference > 12).mean() < 0.002, path


def test_another_seed_draws_other_images(tmp_path):
    for path in render_datasets.render(tmp_path, seed=1):
        ours = np.asarray(Image.open(DATASETS / path.relative_to(tmp_path)), np.float32)
        assert np.abs(ours - np.asarray(Image.open(path), np.float32)).mean() > 0.5, path


def test_size_on_disk():
    assert sum(p.stat().st_size for p in DATASETS.rglob("*") if p.is_file()) < 600_000


@pytest.mark.parametrize("name", ["cat_toy", "chinese_art"])
def test_training_can_read_them(name, caplog):
    with caplog.at_level(logging.INFO, logger="gm"):
        images = image_folder.load_images(DATASETS / name, 320)
    assert caplog.messages == []  # nothing ignored, nothing upscaled
    assert len(images) == 6
    assert len({p.original_size for p in images}) > 2  # several aspect ratios
    for p in images:
        assert max(p.original_size) <= 512
        assert p.pixels.std() > 0.1


def test_every_cat_shows_its_colours_within_the_crop():
    for p in image_folder.load_images(DATASETS / "cat_toy", 320):
        red, green, blue = p.pixels
        teal = (red < -0.45) & (green > -0.5) & (blue > -0.45) & (blue - red > 0.3)
        orange = (red > 0.4) & (np.abs(green) < 0.35) & (blue < -0.5)
        assert teal.mean() > 0.01, p.name
        assert orange.mean() > 0.003, p.name


def test_every_painting_is_paper_ink_and_a_red_seal_within_the_crop():
    for p in image_folder.load_images(DATASETS / "chinese_art", 320):
        red, green, blue = p.pixels
        assert ((red > green) & (green > blue) & (red > 0.6)).mean() > 0.3, p.name
        assert (p.pixels.max(0) < 0).mean() > 0.005, p.name
        assert ((red > 0.2) & (green < -0.3) & (blue < -0.3)).mean() > 0.002, p.name
