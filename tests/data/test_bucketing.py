"""Bucket resolutions, the bucket of an image, and its crop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gm.data import bucketing, image_folder
from gm.data.image import flip_horizontal
from tests.data.images import noise, save


def test_buckets_include_the_sizes_of_sdxl() -> None:
    sizes = bucketing.make_bucket_resolutions(1024, 64)
    for size in (
        (1024, 1024),
        (896, 1152),
        (832, 1216),
        (768, 1344),
        (640, 1536),
        (1152, 896),
        (1536, 640),
        (512, 2048),
    ):
        assert size in sizes
    assert all(height % 64 == width % 64 == 0 for height, width in sizes)
    assert all(height * width <= 1024**2 for height, width in sizes)
    assert sizes == sorted(set(sizes))
    assert bucketing.make_bucket_resolutions(64, 16) == [
        (32, 96),
        (32, 112),
        (32, 128),
        (48, 80),
        (64, 64),
        (80, 48),
        (96, 32),
        (112, 32),
        (128, 32),
    ]
    assert bucketing.make_bucket_resolutions(16, 64) == []


@pytest.mark.parametrize(
    ("original", "size"),
    [
        ((3000, 3000), (1024, 1024)),
        ((3000, 4000), (896, 1152)),
        ((4000, 3000), (1152, 896)),
        ((1080, 1920), (768, 1344)),
        ((10, 5000), (512, 2048)),
        ((100, 101), (1024, 1024)),
    ],
)
def test_the_bucket_with_the_nearest_aspect_ratio_is_selected(original: bucketing.Size, size: bucketing.Size) -> None:
    assert bucketing.select_bucket(original, bucketing.make_bucket_resolutions(1024, 64)) == size


@pytest.mark.parametrize(
    ("height", "width", "size", "crop"),
    [
        (48, 80, (48, 80), (0, 0)),
        (100, 160, (48, 80), (1, 0)),  # becomes 50 × 80
        (100, 170, (48, 80), (0, 1)),  # becomes 48 × 82
        (170, 100, (80, 48), (1, 0)),
        (200, 200, (64, 64), (0, 0)),
    ],
)
def test_an_image_is_resized_to_cover_its_bucket_and_center_cropped(
    tmp_path: Path, height: int, width: int, size: bucketing.Size, crop: tuple[int, int]
) -> None:
    path = save(tmp_path / "a.png", noise(height, width))
    (image,) = image_folder.load_images(tmp_path, 64, bucket_resolutions=bucketing.make_bucket_resolutions(64, 16))
    assert image.pixels.shape == (3, *size)
    assert (image.original_size, image.crop_top_left) == ((height, width), crop)
    scale = max(size[0] / height, size[1] / width)
    whole = Image.open(path).resize((round(width * scale), round(height * scale)), Image.Resampling.LANCZOS)
    top, left = crop
    cut = np.asarray(whole.crop((left, top, left + size[1], top + size[0])), np.float32).transpose(2, 0, 1)
    np.testing.assert_allclose((image.pixels + 1) * 127.5, cut, atol=1.01)
    flipped = flip_horizontal(image)
    assert np.array_equal(flipped.pixels, image.pixels[:, :, ::-1])
    assert flipped.crop_top_left == (top, whole.width - size[1] - left)
