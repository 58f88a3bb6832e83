"""Evaluation of images by the nearest rendering of a scene, without a network.

A layout is a shape with a place and a size; it determines the share of fill, stripes, outline, backdrop and spots in
each pixel. The colors whose rendering is nearest to the image are a least-squares problem of five unknowns, solved for
every layout of a shape's grid, then for finer and finer neighbours of the best one. Images are reduced to 32 × 32
pixels.
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

from examples.tiny_sdxl.colors import oklab
from examples.tiny_sdxl.rendering import coverage
from examples.tiny_sdxl.world import SHAPES, Scene

_SIDE = 32
_RADII = np.linspace(0.19, 0.36, 6)
_PLACES = np.linspace(-1, 1, 9)
_STEPS = (0.02, 0.01, 0.005)
_REGIONS = ("fill", "stripes", "outline", "backdrop", "spots")
_DISTINCT = 0.1  # distance in OKLab from which on two regions have different colors
_MIN_EXPLAINED = 0.02  # share of the image's variance that an outline must explain
_ANY = (0.0, 0.0, 0.0)  # placeholder for the color of an existing region


@dataclass(frozen=True)
class _Layouts:
    scenes: Sequence[Scene]
    names: tuple[str, ...]
    masks: np.ndarray  # [layouts, regions, pixels]
    products: np.ndarray  # of the masks of a layout with each other, [layouts, regions, regions]


def parse_scene(image: np.ndarray) -> Scene:
    """Return the scene nearest to `image` (uint8 [H, W, 3])."""
    pixels = _pixels(image)
    spread = float(((pixels - pixels.mean(0)) ** 2).sum())
    plain, plain_layout = _best(pixels, SHAPES, False, {})
    outlined, outlined_layout = _best(pixels, SHAPES, True, {})
    # More regions always explain more, so an outline must explain enough and have a distinct color.
    if plain - outlined > _MIN_EXPLAINED * spread and (scene := _with_colors(image, outlined_layout)).outline:
        return scene
    return _with_colors(image, plain_layout)


def distance(image: np.ndarray, colors: Mapping[str, Sequence[float]], shape: str | None = None) -> float:
    """Return the distance of `image` from the nearest rendering with `colors` (region → sRGB), whatever the rest is.

    The distance is the root mean square difference, in sRGB from 0 to 1, over the regions with these colors. With
    `shape` only renderings of this shape count, and the whole image's error is divided by the area of these regions.
    Without it all shapes count, and only the error within these regions.
    """
    fixed = {name: np.asarray(color, np.float32) / 255 for name, color in colors.items()}
    pixels, has_outline = _pixels(image), "outline" in colors
    if shape is not None:
        return _best(pixels, (shape,), has_outline, fixed)[0] ** 0.5
    nearest = _layouts([_best(pixels, SHAPES, has_outline, fixed)[1]])
    masks = nearest.masks[0]
    is_fixed = masks[[name in fixed for name in nearest.names]].sum(0)
    error = ((pixels - masks.T @ _colors(pixels, nearest, fixed)[0][0]) ** 2).sum(1)
    return float((is_fixed * error).sum() / is_fixed.sum()) ** 0.5


@cache
def _grid(shape: str, has_outline: bool) -> _Layouts:
    scenes = []
    for radius in _RADII:
        for x, y in itertools.product(0.5 + (0.47 - radius) * _PLACES, repeat=2):
            scenes.append(Scene(shape, radius, x, y, _ANY, _ANY, _ANY, _ANY if has_outline else None, _ANY))
    return _layouts(scenes)


def _layouts(scenes: Sequence[Scene]) -> _Layouts:
    names = tuple(name for name in _REGIONS if scenes[0].outline or name != "outline")
    nothing = np.zeros((_SIDE, _SIDE))
    shares = [coverage(scene, _SIDE) for scene in scenes]
    masks = np.stack([np.stack([s.get(name, nothing).ravel() for name in names]) for s in shares]).astype(np.float32)
    return _Layouts(scenes, names, masks, masks @ masks.transpose(0, 2, 1))


def _best(
    pixels: np.ndarray, shapes: Sequence[str], has_outline: bool, fixed: Mapping[str, np.ndarray]
) -> tuple[float, Scene]:
    """Return the least error and its layout, from the shapes' grids and then from finer and finer neighbours."""
    candidates = [_nearest(pixels, _grid(shape, has_outline), fixed) for shape in shapes]
    best, scene = min(candidates, key=lambda candidate: candidate[0])
    for step in _STEPS:
        moves = itertools.product((-step, 0, step), repeat=3)
        scenes = [
            dataclasses.replace(scene, radius=scene.radius + r, x=scene.x + x, y=scene.y + y) for r, x, y in moves
        ]
        error, nearest = _nearest(pixels, _layouts(scenes), fixed)
        if error < best:
            best, scene = error, nearest
    return best, scene


def _nearest(pixels: np.ndarray, layouts: _Layouts, fixed: Mapping[str, np.ndarray]) -> tuple[float, Scene]:
    """Return the least squared error of a layout's rendering, and the layout; per area if colors are `fixed`."""
    colors, sums = _colors(pixels, layouts, fixed)
    errors = (pixels**2).sum() + (colors * (layouts.products @ colors - 2 * sums)).sum((1, 2))
    is_fixed = [name in fixed for name in layouts.names]
    errors = np.maximum(errors, 0.0) / (layouts.masks[:, is_fixed].sum((1, 2)) if fixed else 1.0)
    return float(errors.min()), layouts.scenes[int(errors.argmin())]


def _colors(pixels: np.ndarray, layouts: _Layouts, fixed: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return each layout's least-squares colors and its sums of the pixels, both [layouts, regions, 3]."""
    # One product of matrices, which is many times faster than one for each layout.
    sums = (layouts.masks.reshape(-1, len(pixels)) @ pixels).reshape(*layouts.masks.shape[:2], 3)
    free = [r for r, name in enumerate(layouts.names) if name not in fixed]
    is_fixed = [r for r, name in enumerate(layouts.names) if name in fixed]
    colors = np.zeros_like(sums)
    for r in is_fixed:
        colors[:, r] = fixed[layouts.names[r]]
    target = sums[:, free] - layouts.products[:, free][:, :, is_fixed] @ colors[:, is_fixed]
    # The ridge term gives regions of no area the color 0.
    normal = layouts.products[:, free][:, :, free] + 1e-4 * np.eye(len(free), dtype=np.float32)
    colors[:, free] = np.linalg.solve(normal, target)
    return colors, sums


def _pixels(image: np.ndarray) -> np.ndarray:
    small = Image.fromarray(image).resize((_SIDE, _SIDE), Image.Resampling.BOX)
    return np.asarray(small, np.float32).reshape(-1, 3) / 255


def _with_colors(image: np.ndarray, layout: Scene) -> Scene:
    """Return `layout` with the colors of `image`; regions of the same color are merged."""
    pixels = oklab(image)
    colors: dict[str, np.ndarray | None] = {}
    for name, share in coverage(layout, len(image)).items():
        colors[name] = np.median(pixels[share >= min(0.99, float(share.max()))], axis=0)
    for main, pattern in (("fill", "stripes"), ("backdrop", "spots")):
        a, b = colors.get(main), colors.get(pattern)
        if b is None or a is None or np.linalg.norm(a - b) < _DISTINCT:
            colors[main], colors[pattern] = a if a is not None else b, None
    outline = colors.get("outline")
    if outline is not None:
        others = [c for name, c in colors.items() if name in ("fill", "backdrop") and c is not None]
        if min(float(np.linalg.norm(outline - c)) for c in others) < _DISTINCT:
            colors["outline"] = None
    values = {name: None if c is None else tuple(float(value) for value in c) for name, c in colors.items()}
    fill, backdrop = values["fill"] or _ANY, values["backdrop"] or _ANY
    patterns: dict[str, Any] = {name: values.get(name) for name in ("stripes", "outline", "spots")}
    return Scene(layout.shape, layout.radius, layout.x, layout.y, fill, backdrop, **patterns)
