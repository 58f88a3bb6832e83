"""Synthetic scenes for training the tiny model: one shape on a backdrop, with continuous colors, sizes and places.

Scene `index` of a `seed` is always the same. Captions (`captions.py`) describe it partly: the nearest color name, the
rough place and size. Some scenes show a named thing or style, which always has the same colors.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from examples.tiny_sdxl.colors import CENTERS, COLORS, nearest_name, oklab, srgb
from gm.runtime import rng

# Names of things (a shape in two colors) and styles (an outline and spots in two): concepts that one token stands for.
# Without them no embedding of the model would mean several colors at once, and a new one could not be learned. There
# are few, so that each is seen often.
_THINGS = """
    mango lemon melon banana strawberry grape kiwi carrot pumpkin tiger
    zebra lion wolf bear rabbit duck salmon turtle butterfly candy
"""
_STYLES = """
    paris london berlin madrid lisbon rome milan naples vienna prague
    moscow helsinki geneva hamburg bristol delhi tokyo cairo boston lima
"""

THINGS = tuple(_THINGS.split())
STYLES = tuple(_STYLES.split())
SHAPES = ("circle", "square", "triangle", "star", "heart", "cross")
SMALL, LARGE = 0.23, 0.30  # radii, as shares of the side, up to which a shape is small and from which it is large
_HELD_OUT = 7  # of 14 colors and 6 shapes: two colors of each shape, no more than one shape of each color
_JITTER = 0.025  # standard deviation of a color around its name's, in each coordinate of OKLab
_NAMED_JITTER = 0.05  # the same for the colors of named things and styles
_NAMED = 0.25  # share of the scenes with a named thing, and of those in a named style
_DISTINCT = 0.22  # least distance in OKLab between colors that touch


@dataclass(frozen=True)
class Scene:
    """Content of an image. Lengths are shares of the side, colors OKLab."""

    shape: str
    radius: float
    x: float
    y: float
    fill: tuple[float, ...]
    backdrop: tuple[float, ...]
    stripes: tuple[float, ...] | None = None  # across the shape
    outline: tuple[float, ...] | None = None  # around it
    spots: tuple[float, ...] | None = None  # on the backdrop
    thing: str | None = None  # name of shape, fill and stripes together
    style: str | None = None  # name of outline and spots together


def is_held_out(shape: str, color: str) -> bool:
    """Whether training excludes this shape in this color; two colors of each shape are excluded."""
    return list(COLORS).index(color) % _HELD_OUT == SHAPES.index(shape)


def scene(seed: int, index: int, held_out: bool = False) -> Scene:
    """Return scene `index` of the world of `seed`, one of those excluded from training if `held_out`."""
    generator = rng.generator(seed, "scene", int(held_out), index)
    while True:
        candidate = _random(generator)
        if is_held_out(candidate.shape, nearest_name(candidate.fill)) == held_out:
            return candidate


@cache
def named(name: str) -> dict[str, Any]:
    """Return the fields of Scene that all scenes with the thing or style of this name share."""
    generator = rng.generator(0, "named", name)
    if name in STYLES:
        outline = _color(generator, jitter=_NAMED_JITTER)
        return {"style": name, "outline": outline, "spots": _color(generator, outline, jitter=_NAMED_JITTER)}
    while True:
        shape, fill = str(generator.choice(SHAPES)), _color(generator, jitter=_NAMED_JITTER)
        if not is_held_out(shape, nearest_name(fill)):
            return {
                "thing": name,
                "shape": shape,
                "fill": fill,
                "stripes": _color(generator, fill, jitter=_NAMED_JITTER),
            }


def _random(generator: np.random.Generator) -> Scene:
    kind = generator.random()
    names = THINGS if kind < _NAMED else STYLES if kind < 2 * _NAMED else None
    shared = named(str(generator.choice(names))) if names else {}
    fixed = [value for name, value in shared.items() if name in ("fill", "stripes", "outline", "spots")]
    fill = shared.get("fill") or _color(generator, *fixed)
    backdrop = _color(generator, fill, *fixed)
    has_stripes, has_outline, has_spots = generator.random(3) < (0.4, 0.35, 0.35)
    radius = generator.uniform(0.19, 0.36)
    room = 0.5 - radius - 0.03
    parts: dict[str, Any] = {
        "shape": str(generator.choice(SHAPES)),
        "radius": radius,
        "x": 0.5 + room * generator.uniform(-1, 1),
        "y": 0.5 + room * generator.uniform(-1, 1),
        "fill": fill,
        "backdrop": backdrop,
        "stripes": _color(generator, fill, backdrop, *fixed) if has_stripes else None,
        "outline": _color(generator, fill, backdrop) if has_outline else None,
        "spots": _color(generator, fill, backdrop) if has_spots else None,
    }
    return Scene(**parts | shared)


def _color(generator: np.random.Generator, *others: tuple[float, ...], jitter: float = _JITTER) -> tuple[float, ...]:
    while True:
        centre = CENTERS[generator.integers(len(CENTERS))]
        lab = oklab(srgb(centre + jitter * generator.standard_normal(3)))
        if all(np.linalg.norm(lab - other) > _DISTINCT for other in others):
            return tuple(float(value) for value in lab)
