"""Rendering of scenes at any resolution: Pillow rasterizes polygons four times as large, which are then averaged."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

from examples.tiny_sdxl.colors import srgb
from examples.tiny_sdxl.world import Scene

_OVERSAMPLING = 4
_STRIPE_PERIOD, _SPOT_PERIOD = 0.26, 0.2  # shares of the side, as all lengths here
_OUTLINE = 0.055  # width


def coverage(scene: Scene, side: int) -> dict[str, np.ndarray]:
    """Return for each color of the scene its share of each pixel [side, side]; the shares add up to 1."""
    large = side * _OVERSAMPLING
    mask, stroke = _mask(scene, large), _stroke(scene, large)
    inside, outside = mask & ~stroke, ~mask & ~stroke
    stripes = inside & _stripes(scene, large) if scene.stripes is not None else inside & False
    spots = outside & _spots(large) if scene.spots is not None else outside & False
    parts = {
        "fill": inside & ~stripes,
        "stripes": stripes,
        "outline": stroke,
        "backdrop": outside & ~spots,
        "spots": spots,
    }
    return {name: _averaged(part) for name, part in parts.items() if part.any()}


def _averaged(part: np.ndarray) -> np.ndarray:
    rows = np.add.reduce([part[k::_OVERSAMPLING].astype(np.uint8) for k in range(_OVERSAMPLING)])
    counts = np.add.reduce([rows[:, k::_OVERSAMPLING] for k in range(_OVERSAMPLING)])
    return counts.astype(np.float64) / _OVERSAMPLING**2


def render(scene: Scene, side: int) -> np.ndarray:
    """Return `scene` as float32 [side, side, 3] of sRGB, 0 … 255."""
    total = np.zeros((side, side, 3))
    for name, share in coverage(scene, side).items():
        total += share[..., None] * srgb(getattr(scene, name))
    return total.astype(np.float32)


def _mask(scene: Scene, side: int) -> np.ndarray:
    canvas = Image.new("1", (side, side))
    ImageDraw.Draw(canvas).polygon(_points(scene, side), fill=1)
    return np.asarray(canvas)


def _stroke(scene: Scene, side: int) -> np.ndarray:
    canvas = Image.new("1", (side, side))
    if scene.outline is not None:
        pen = ImageDraw.Draw(canvas)
        points, width = _points(scene, side), _OUTLINE * side
        pen.line([*points, points[0]], fill=1, width=round(width))
        for x, y in points:  # round joints
            pen.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=1)
    return np.asarray(canvas)


def _stripes(scene: Scene, side: int) -> np.ndarray:
    places = np.arange(side) / side
    return (((places - scene.x) + (places - scene.y)[:, None]) / _STRIPE_PERIOD) % 1 < 0.5


def _spots(side: int) -> np.ndarray:
    offset = (np.arange(side) / side / _SPOT_PERIOD) % 1 - 0.5
    return offset[:, None] ** 2 + offset**2 < 0.32**2


def _points(scene: Scene, side: int) -> list[tuple[float, float]]:
    centre = np.array([scene.x, scene.y])
    return [(float(x), float(y)) for x, y in side * (centre + scene.radius * _POLYGONS[scene.shape])]


def _circle() -> np.ndarray:
    angles = np.arange(48) * 2 * math.pi / 48
    return np.stack([np.cos(angles), np.sin(angles)], -1)


def _star() -> np.ndarray:
    angles = -math.pi / 2 + np.arange(10) * math.pi / 5
    radii = np.where(np.arange(10) % 2 == 0, 1.08, 0.48)
    return radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], -1)


def _heart() -> np.ndarray:
    t = np.arange(48) * 2 * math.pi / 48
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x, -y - 2.5], -1) / 15.5


def _cross() -> np.ndarray:
    quarter = np.array([[-1, -3], [1, -3], [1, -1]])
    turn = np.array([[0, 1], [-1, 0]])
    return 0.33 * np.concatenate([quarter @ np.linalg.matrix_power(turn, k) for k in range(4)])


_POLYGONS = {
    "circle": _circle(),
    "square": 0.86 * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]),
    "triangle": np.array([[0, -1.0], [1.0, 0.8], [-1.0, 0.8]]),
    "star": _star(),
    "heart": _heart(),
    "cross": _cross(),
}
