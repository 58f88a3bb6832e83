"""Sizes of one area and several shapes, so that images need not be cut square."""

from __future__ import annotations

import math
from collections.abc import Sequence

Size = tuple[int, int]  # height, width


def sizes(resolution: int, step: int) -> list[Size]:
    """Return the sizes whose sides are multiples of `step`, from half to twice `resolution`, in order of their heights.

    One side is as long as the other lets the area be no larger than that of the square. With 1024 and 64 they are among
    those that SDXL was trained on (Podell et al., 2023, appendix I).
    """
    sides = [side for side in range(step, 2 * resolution + 1, step) if 2 * side >= resolution]
    found = [(resolution * resolution // side // step * step, side) for side in sides]
    kept = [(height, width) for height, width in found if resolution <= 2 * height <= 4 * resolution]
    return sorted({*kept, *((width, height) for height, width in kept)})


def nearest(original: Size, known: Sequence[Size]) -> Size:
    """Return the size whose ratio of width to height is nearest to that of `original`; of equals, the largest."""

    def distance(size: Size) -> tuple[float, int]:
        ratio = (size[1] * original[0]) / (size[0] * original[1])
        return round(abs(math.log(ratio)), 9), -size[0] * size[1]

    return min(known, key=distance)
