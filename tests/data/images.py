"""Images written to a folder and read back, for the tests of gm/data/image_folder.py."""

from __future__ import annotations

import numpy as np
from PIL import Image

from gm.data import image_folder

WHITE, BLACK = 1.0, -1.0


def save(path, array, **options):
    Image.fromarray(np.asarray(array, np.uint8)).save(path, **options)
    return path


def one(tmp_path, resolution):
    (image,) = image_folder.load_images(tmp_path, resolution)
    return image


def noise(height, width):
    """Random pixels, far enough from black and white that a sharp filter does not overshoot and clip."""
    return np.random.default_rng(0).integers(70, 186, (height, width, 3), np.uint8)
