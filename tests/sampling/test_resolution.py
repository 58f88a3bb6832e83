"""Sizes of images, and the size conditioning."""

from __future__ import annotations

from typing import Any

import pytest

from gm.config import SamplingConfig
from gm.config.model import ModelConfig
from gm.errors import UserError
from gm.sampling import resolution
from gm.sampling.resolution import Resolution


def from_options(**options: Any) -> Resolution:
    return resolution.from_options(SamplingConfig(**options), ModelConfig())


def test_height_width_and_size_conditioning_of_the_options() -> None:
    assert from_options() == Resolution(1024, 1024, (1024, 1024, 0, 0, 1024, 1024))
    wide = from_options(sd_xl_base_ratios="1.75")
    assert wide == Resolution(768, 1344, (768, 1344, 0, 0, 768, 1344))
    sizes = {"orig_height": 1, "orig_width": 2, "crop_coords_top": 3, "crop_coords_left": 4, "target_height": 5}
    assert from_options(height=512, **sizes) == Resolution(512, 1024, (1, 2, 3, 4, 5, 1024))


def test_every_aspect_ratio_is_that_of_its_sides_and_of_the_trained_area() -> None:
    for name, (width, height) in resolution.ASPECT_RATIOS.items():
        assert width / height == pytest.approx(float(name), abs=0.0051)
        assert width % 64 == height % 64 == 0
        assert 0.9 < width * height / 1024**2 <= 1.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sd_xl_base_ratios": "1.74"}, "unknown --sd_xl_base_ratios '1.74'; known are .* did you mean '1.75'"),
        ({"sd_xl_base_ratios": "1.0", "height": 8}, "leave out --height and --width"),
        ({"height": 1028}, "--height is 1028; it must be a multiple of 8"),
        ({"width": 1001}, "--width is 1001; it must be a multiple of 8"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        from_options(**options)
