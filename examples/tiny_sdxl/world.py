"""The world that the tiny model knows: one shape on a backdrop, with continuous colours, sizes and places underneath.

Scene `index` of a `seed` is always the same. Words (`captions.py`) say less than a scene holds: which of a few names a
colour is nearest to, roughly where, roughly how big. Some scenes show a thing or a style that has a name (`lexicon.py`)
and always the same colours.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from examples.tiny_sdxl.colours import CENTRES, COLOURS, nearest_name, oklab, srgb
from examples.tiny_sdxl.lexicon import STYLES, THINGS
from gm.runtime import rng

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross")
SMALL, LARGE = 0.23, 0.30  # radii, as shares of the side, up to which a shape is small and from which it is large
_HELD_OUT = 7  # of 14 colours and 6 shapes: two colours of each shape, no more than one shape of each colour
_JITTER = 0.025  # standard deviation of a colour around its name's, in each coordinate of OKLab
_OWN_JITTER = 0.05  # that of the colours of things and styles with a name of their own
_NAMED = 0.25  # share of the scenes that show a thing with a name, and of those in a style with one
_DISTINCT = 0.22  # least distance in OKLab between colours that touch


@dataclass(frozen=True)
class Scene:
    """What there is to see. Lengths are shares of the side, colours OKLab."""

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


def is_held_out(shape: str, colour: str) -> bool:
    """Whether training never shows this shape in this colour: so it is for two colours of each shape."""
    return list(COLOURS).index(colour) % _HELD_OUT == SHAPES.index(shape)


def scene(seed: int, index: int, held_out: bool = False) -> Scene:
    """Return scene `index` of the world of `seed`, drawn from those kept from training if `held_out`."""
    generator = rng.generator(seed, "scene", int(held_out), index)
    while True:
        candidate = _random(generator)
        if is_held_out(candidate.shape, nearest_name(candidate.fill)) == held_out:
            return candidate


@cache
def named(name: str) -> dict[str, Any]:
    """Return what all scenes with the thing or in the style of this name have in common, by field of Scene."""
    generator = rng.generator(0, "named", name)
    if name in STYLES:
        outline = _colour(generator, jitter=_OWN_JITTER)
        return {"style": name, "outline": outline, "spots": _colour(generator, outline, jitter=_OWN_JITTER)}
    while True:
        shape, fill = str(generator.choice(SHAPES)), _colour(generator, jitter=_OWN_JITTER)
        if not is_held_out(shape, nearest_name(fill)):
            return {
                "thing": name,
                "shape": shape,
                "fill": fill,
                "stripes": _colour(generator, fill, jitter=_OWN_JITTER),
            }


def _random(generator: np.random.Generator) -> Scene:
    kind = generator.random()
    words = THINGS if kind < _NAMED else STYLES if kind < 2 * _NAMED else None
    own = named(str(generator.choice(words))) if words else {}
    given = [value for name, value in own.items() if name in ("fill", "stripes", "outline", "spots")]
    fill = own.get("fill") or _colour(generator, *given)
    backdrop = _colour(generator, fill, *given)
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
        "stripes": _colour(generator, fill, backdrop, *given) if has_stripes else None,
        "outline": _colour(generator, fill, backdrop) if has_outline else None,
        "spots": _colour(generator, fill, backdrop) if has_spots else None,
    }
    return Scene(**parts | own)


def _colour(generator: np.random.Generator, *others: tuple[float, ...], jitter: float = _JITTER) -> tuple[float, ...]:
    while True:
        centre = CENTRES[generator.integers(len(CENTRES))]
        lab = oklab(srgb(centre + jitter * generator.standard_normal(3)))
        if all(np.linalg.norm(lab - other) > _DISTINCT for other in others):
            return tuple(float(value) for value in lab)
