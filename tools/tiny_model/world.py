"""The world that the tiny model knows: one shape on a backdrop, with continuous colours, sizes and places underneath.

Scene `index` of a `seed` is always the same. Words (`captions.py`) say less than a scene holds: which of a few names a
colour is nearest to, roughly where, roughly how big.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gm import draws
from tools.tiny_model.colours import CENTRES, COLOURS, nearest_name, oklab, srgb

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross")
SMALL, LARGE = 0.23, 0.30  # radii, as shares of the side, up to which a shape is small and from which it is large
_HELD_OUT = 7  # of 14 colours and 6 shapes: two colours of each shape, no more than one shape of each colour
_JITTER = 0.025  # standard deviation of a colour around its name's, in each coordinate of OKLab
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


def is_held_out(shape: str, colour: str) -> bool:
    """Whether training never shows this shape in this colour: so it is for two colours of each shape."""
    return list(COLOURS).index(colour) % _HELD_OUT == SHAPES.index(shape)


def scene(seed: int, index: int, held_out: bool = False) -> Scene:
    """Return scene `index` of the world of `seed`, drawn from those kept from training if `held_out`."""
    rng = draws.generator(seed, "scene", int(held_out), index)
    while True:
        candidate = _random(rng)
        if is_held_out(candidate.shape, nearest_name(candidate.fill)) == held_out:
            return candidate


def _random(rng: np.random.Generator) -> Scene:
    fill = _colour(rng)
    backdrop = _colour(rng, fill)
    has_stripes, has_outline, has_spots = rng.random(3) < (0.4, 0.35, 0.35)
    radius = rng.uniform(0.19, 0.36)
    room = 0.5 - radius - 0.03
    x, y = 0.5 + room * rng.uniform(-1, 1), 0.5 + room * rng.uniform(-1, 1)
    return Scene(
        shape=str(rng.choice(SHAPES)),
        radius=radius,
        x=x,
        y=y,
        fill=fill,
        backdrop=backdrop,
        stripes=_colour(rng, fill, backdrop) if has_stripes else None,
        outline=_colour(rng, fill, backdrop) if has_outline else None,
        spots=_colour(rng, fill, backdrop) if has_spots else None,
    )


def _colour(rng: np.random.Generator, *others: tuple[float, ...]) -> tuple[float, ...]:
    while True:
        centre = CENTRES[rng.integers(len(CENTRES))]
        lab = oklab(srgb(centre + _JITTER * rng.standard_normal(3)))
        if all(np.linalg.norm(lab - other) > _DISTINCT for other in others):
            return tuple(float(value) for value in lab)
