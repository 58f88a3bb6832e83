"""Aspect-ratio buckets: resolutions of about the same area, so that images need not be cropped to squares."""

from __future__ import annotations

import math
from collections.abc import Sequence

Size = tuple[int, int]  # height, width


def make_bucket_resolutions(resolution: int, step: int) -> list[Size]:
    """Return the sizes whose sides are multiples of `step`, from half to twice `resolution`, sorted by height.

    One side is as long as the other allows without a larger area than that of the square. For 1024 and 64 they include
    those that SDXL was trained on (Podell et al., 2023, appendix I).
    """
    sides = [side for side in range(step, 2 * resolution + 1, step) if 2 * side >= resolution]
    candidates = [(resolution * resolution // side // step * step, side) for side in sides]
    sizes = [(height, width) for height, width in candidates if resolution <= 2 * height <= 4 * resolution]
    return sorted({*sizes, *((width, height) for height, width in sizes)})


def select_bucket(original_size: Size, bucket_resolutions: Sequence[Size]) -> Size:
    """Return the bucket with the aspect ratio nearest to that of `original_size`; of equals, the largest."""

    def distance(size: Size) -> tuple[float, int]:
        ratio = (size[1] * original_size[0]) / (size[0] * original_size[1])
        return round(abs(math.log(ratio)), 9), -size[0] * size[1]

    return min(bucket_resolutions, key=distance)
