"""Says what an image shows by finding the drawing of the world that is nearest to it; it knows no network.

A layout is a shape at a place in a size, which says what share of each pixel shows fill, stripes, outline, backdrop and
spots. The colours that make its drawing nearest to the image are a least-squares problem of five unknowns, solved for
every layout of a grid, then for finer and finer neighbours of the best. Images are reduced to 32 pixels a side.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from examples.tiny_sdxl.colours import oklab
from examples.tiny_sdxl.drawing import regions
from examples.tiny_sdxl.world import SHAPES, Scene

_SIDE = 32
_RADII = np.linspace(0.19, 0.36, 6)
_PLACES = np.linspace(-1, 1, 9)
_STEPS = (0.02, 0.01, 0.005)
_REGIONS = ("fill", "stripes", "outline", "backdrop", "spots")
_SEEN = 0.1  # distance in OKLab from which on two regions have two colours
_COST = 0.02  # share of the image's variance that an outline must explain to be seen
_ANY = (0.0, 0.0, 0.0)  # a colour that says: there is something


@dataclass(frozen=True)
class _Layouts:
    scenes: Sequence[Scene]
    names: tuple[str, ...]
    masks: np.ndarray  # [layouts, regions, pixels]
    products: np.ndarray  # of the masks of a layout with each other, [layouts, regions, regions]


def look(image: np.ndarray) -> Scene:
    """Return the scene that `image` (uint8 [H, W, 3]) shows, its colours in OKLab, or the nearest there is."""
    pixels = _pixels(image)
    spread = float(((pixels - pixels.mean(0)) ** 2).sum())
    plain, plain_layout = _best(pixels, _grid(False), SHAPES, {})
    outlined, outlined_layout = _best(pixels, _grid(True), SHAPES, {})
    # More regions always explain more: an outline is seen only where it explains enough, in a colour of its own.
    if plain - outlined > _COST * spread and (scene := _read(image, outlined_layout)).outline:
        return scene
    return _read(image, plain_layout)


def distance(image: np.ndarray, colours: Mapping[str, Sequence[float]], shape: str | None = None) -> float:
    """Return how far `image` is from showing something with `colours` (region → sRGB), whatever the rest is.

    It is the root mean square difference, in sRGB from 0 to 1, to the nearest drawing that does, over the regions with
    these colours. `shape` is what has them, then all that disagrees counts, wherever it is: another shape with these
    colours is something else. Without it they may be on any, and only what disagrees within those regions counts: how
    well the shape is drawn says nothing about the colours.
    """
    fixed = {name: np.asarray(colour, np.float32) / 255 for name, colour in colours.items()}
    pixels, layouts = _pixels(image), _grid("outline" in colours)
    if shape is not None:
        return _best(pixels, layouts, (shape,), fixed)[0] ** 0.5
    nearest = _layouts([_best(pixels, layouts, SHAPES, fixed)[1]])
    masks = nearest.masks[0]
    given = masks[[name in fixed for name in nearest.names]].sum(0)
    error = ((pixels - masks.T @ _colours(pixels, nearest, fixed)[0]) ** 2).sum(1)
    return float((given * error).sum() / given.sum()) ** 0.5


@cache
def _grid(has_outline: bool) -> _Layouts:
    scenes = []
    for shape, radius in itertools.product(SHAPES, _RADII):
        for x, y in itertools.product(0.5 + (0.47 - radius) * _PLACES, repeat=2):
            scenes.append(Scene(shape, radius, x, y, _ANY, _ANY, _ANY, _ANY if has_outline else None, _ANY))
    return _layouts(scenes)


def _layouts(scenes: Sequence[Scene]) -> _Layouts:
    names = tuple(name for name in _REGIONS if scenes[0].outline or name != "outline")
    nothing = np.zeros((_SIDE, _SIDE))
    shares = [regions(scene, _SIDE) for scene in scenes]
    masks = np.stack([np.stack([s.get(name, nothing).ravel() for name in names]) for s in shares]).astype(np.float32)
    return _Layouts(scenes, names, masks, masks @ masks.transpose(0, 2, 1))


def _best(
    pixels: np.ndarray, layouts: _Layouts, shapes: Sequence[str], fixed: Mapping[str, np.ndarray]
) -> tuple[float, Scene]:
    """Return the least error and its layout; first of the grid, then among finer and finer neighbours."""
    errors = _errors(pixels, layouts, fixed)
    errors[[scene.shape not in shapes for scene in layouts.scenes]] = np.inf
    best, scene = float(errors.min()), layouts.scenes[int(errors.argmin())]
    for step in _STEPS:
        moves = itertools.product((-step, 0, step), repeat=3)
        scenes = [
            dataclasses.replace(scene, radius=scene.radius + r, x=scene.x + x, y=scene.y + y) for r, x, y in moves
        ]
        errors = _errors(pixels, _layouts(scenes), fixed)
        if errors.min() < best:
            best, scene = float(errors.min()), scenes[int(errors.argmin())]
    return best, scene


def _errors(pixels: np.ndarray, layouts: _Layouts, fixed: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return for each layout the squared error of its nearest drawing; if colours are `fixed`, over their area."""
    colours = _colours(pixels, layouts, fixed)
    error = (pixels**2).sum() + (colours * (layouts.products @ colours - 2 * layouts.masks @ pixels)).sum((1, 2))
    given = [name in fixed for name in layouts.names]
    return np.maximum(error, 0.0) / (layouts.masks[:, given].sum((1, 2)) if fixed else 1.0)


def _colours(pixels: np.ndarray, layouts: _Layouts, fixed: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return for each layout the colours [layouts, regions, 3] that bring it nearest to the image."""
    sums = layouts.masks @ pixels
    free = [r for r, name in enumerate(layouts.names) if name not in fixed]
    given = [r for r, name in enumerate(layouts.names) if name in fixed]
    colours = np.zeros_like(sums)
    for r in given:
        colours[:, r] = fixed[layouts.names[r]]
    wanted = sums[:, free] - layouts.products[:, free][:, :, given] @ colours[:, given]
    # A region that a layout does not have gets no colour.
    normal = layouts.products[:, free][:, :, free] + 1e-4 * np.eye(len(free), dtype=np.float32)
    colours[:, free] = np.linalg.solve(normal, wanted)
    return colours


def _pixels(image: np.ndarray) -> np.ndarray:
    small = Image.fromarray(image).resize((_SIDE, _SIDE), Image.Resampling.BOX)
    return np.asarray(small, np.float32).reshape(-1, 3) / 255


def _read(image: np.ndarray, layout: Scene) -> Scene:
    """Return `layout` with the colours that `image` has there; regions of one colour become one."""
    pixels = oklab(image)
    colours: dict[str, np.ndarray | None] = {}
    for name, share in regions(layout, len(image)).items():
        colours[name] = np.median(pixels[share >= min(0.99, float(share.max()))], axis=0)
    for main, pattern in (("fill", "stripes"), ("backdrop", "spots")):
        a, b = colours.get(main), colours.get(pattern)
        if b is None or a is None or np.linalg.norm(a - b) < _SEEN:
            colours[main], colours[pattern] = a if a is not None else b, None
    outline = colours.get("outline")
    if outline is not None:
        others = [c for name, c in colours.items() if name in ("fill", "backdrop") and c is not None]
        if min(float(np.linalg.norm(outline - c)) for c in others) < _SEEN:
            colours["outline"] = None
    seen = {name: None if c is None else tuple(float(value) for value in c) for name, c in colours.items()}
    fill, backdrop = seen["fill"] or _ANY, seen["backdrop"] or _ANY
    patterns: dict[str, Any] = {name: seen.get(name) for name in ("stripes", "outline", "spots")}
    return Scene(layout.shape, layout.radius, layout.x, layout.y, fill, backdrop, **patterns)
