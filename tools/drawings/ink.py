"""Ink on rice paper: washes and strokes add to a sheet's density, which darkens the paper as the ink soaks in.

Lengths are in units of the sheet's shorter side, x to the right and y down from the upper left corner.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from gm import draws
from tools.drawings.noise import fractal, smooth

FINER = 4  # strokes are drawn this much larger, so that their edges are smooth on whole pixels
PAPER = (0.925, 0.875, 0.770)
INK = (0.105, 0.110, 0.130)
VERMILION = (0.72, 0.13, 0.10)

Point = tuple[float, float]


class Sheet:
    """One sheet of paper being painted; `seed` decides its fibres and every chance of the brush."""

    def __init__(self, size: tuple[int, int], seed: int) -> None:
        self.size, self.seed, self.unit = size, seed, min(size)
        self.density = np.zeros((size[1], size[0]), np.float32)
        self.red = np.zeros_like(self.density)
        x, y = np.meshgrid(np.arange(size[0], dtype=np.float32), np.arange(size[1], dtype=np.float32))
        self.x, self.y = (x + 0.5) / self.unit, (y + 0.5) / self.unit
        self.random = draws.generator(seed, "brush")

    @property
    def right(self) -> float:
        """The sheet's width."""
        return self.size[0] / self.unit

    @property
    def bottom(self) -> float:
        """The sheet's height."""
        return self.size[1] / self.unit

    def wash(self, strength: np.ndarray) -> None:
        """Add a soft layer of ink of `strength` [height, width], uneven as a wet brush leaves it."""
        cloud = fractal(self.x * 7, self.y * 7, self.seed + 1)
        self.density += strength * (0.70 + 0.6 * cloud)

    def stroke(self, points: Sequence[Point], width: float, dark: float, taper: str = "both", dry: float = 0.0) -> None:
        """Draw a brush stroke through `points`: `width` at its widest, density `dark`.

        taper: which ends run thin: "both", "end" or "none"; dry: 0 is a full brush, 1 leaves streaks of paper.
        """
        path = _curve(np.array(points, np.float64))
        t = np.linspace(0, 1, len(path))
        swell = {"both": np.sin(np.pi * t) ** 0.6, "end": (1 - t) ** 0.7, "none": np.ones_like(t)}[taper]
        half = width / 2 * swell * (0.9 + 0.2 * smooth(t * 6 + 50 * self.random.random(), 0.5, self.seed))
        direction = np.gradient(path, axis=0)
        across = np.stack([-direction[:, 1], direction[:, 0]], 1)
        across /= np.linalg.norm(across, axis=1, keepdims=True) + 1e-9
        side = across * np.maximum(half, 0.0008)[:, None]
        self._fill(np.concatenate([path + side, (path - side)[::-1]]), dark, dry, path[-1] - path[0])

    def blot(
        self, centre: Point, radii: Point, dark: float, angle: float = 0.0, red: float = 0.0, even: float = 0.0
    ) -> None:
        """Press the brush down once: an uneven oval, `dark` in ink and `red` in vermilion; `even` 1 is a true one."""
        turn = np.linspace(0, 2 * np.pi, 40, endpoint=False)
        wobble = 1 + 0.22 * (1 - even) * (
            smooth(np.cos(turn) * 2 + 60 * self.random.random(), np.sin(turn) * 2, self.seed) - 0.5
        )
        x, y = radii[0] * wobble * np.cos(turn), radii[1] * wobble * np.sin(turn)
        c, s = np.cos(angle), np.sin(angle)
        outline = np.stack([centre[0] + c * x - s * y, centre[1] + s * x + c * y], 1)
        self._fill(outline, dark, 0.0, np.array([c, s]), red)

    def lift(self, where: np.ndarray) -> None:
        """Take ink away, as mist does: `where` [height, width] is 0 (keep) to 1 (bare paper)."""
        self.density *= 1 - np.clip(where, 0, 1)

    def seal(self, corner: Point, side: float, rows: Sequence[str]) -> None:
        """Stamp a red seal whose white lines follow `rows`, a small drawing in # on a grid."""
        pixels = round(side * self.unit * FINER)
        stamp = Image.new("L", (pixels, pixels))
        pen = ImageDraw.Draw(stamp)
        pen.rounded_rectangle((0, 0, pixels - 1, pixels - 1), pixels // 9, fill=255)
        cell = pixels * 0.8 / len(rows)
        for j, row in enumerate(rows):
            for i, mark in enumerate(row):
                if mark == "#":
                    left, top = pixels * 0.1 + i * cell, pixels * 0.1 + j * cell
                    pen.rectangle((left, top, left + cell, top + cell), fill=0)
        layer = Image.new("L", (self.size[0] * FINER, self.size[1] * FINER))
        layer.paste(stamp, (round(corner[0] * self.unit * FINER), round(corner[1] * self.unit * FINER)))
        shape = self._reduced(layer)
        worn = np.clip(fractal(self.x * 60, self.y * 60, self.seed + 2, 3) * 3.2 - 0.75, 0, 1)
        self.red = np.maximum(self.red, shape * (0.72 + 0.28 * worn))

    def picture(self) -> Image.Image:
        """Return the sheet as it looks when dry."""
        fibre = fractal(self.x * 9, self.y * 70, self.seed + 3, 3) + fractal(self.x * 70, self.y * 9, self.seed + 4, 3)
        tone = 0.965 + 0.035 * fibre + 0.03 * (fractal(self.x * 1.7, self.y * 1.7, self.seed + 5) - 0.5)
        edge = np.minimum.reduce([self.x, self.right - self.x, self.y, self.bottom - self.y])
        tone -= 0.06 * np.exp(-edge / 0.05)
        paper = np.array(PAPER, np.float32) * tone[..., None]
        grain = 1 + 0.16 * (fibre[..., None] - 1)
        covered = 1 - np.exp(-np.clip(self.density, 0, None)[..., None] * grain)
        colour = paper * (1 - covered) + np.array(INK, np.float32) * covered
        colour = (
            colour * (1 - self.red[..., None]) + np.array(VERMILION, np.float32) * paper / PAPER * self.red[..., None]
        )
        return Image.fromarray((np.clip(colour, 0, 1) * 255 + 0.5).astype(np.uint8))

    def _fill(self, outline: np.ndarray, dark: float, dry: float, along: np.ndarray, red: float = 0.0) -> None:
        """Add the shape inside `outline` [n, 2], its edge frayed by the paper and darker than its inside."""
        low = np.floor(outline.min(0) * self.unit).astype(int) - 6
        high = np.ceil(outline.max(0) * self.unit).astype(int) + 7
        low, high = np.maximum(low, 0), np.minimum(high, self.size)
        if (high <= low).any():
            return
        layer = Image.new("L", (int(high[0] - low[0]) * FINER, int(high[1] - low[1]) * FINER))
        corners = (outline * self.unit - low) * FINER
        ImageDraw.Draw(layer).polygon([(round(x), round(y)) for x, y in corners.tolist()], fill=255)
        here = np.s_[low[1] : high[1], low[0] : high[0]]
        shape = self._reduced(layer)
        inside = self._reduced(layer.filter(ImageFilter.GaussianBlur(1.6 * FINER)))
        ink = shape * (1.16 - 0.32 * inside)
        if dry:
            direction = along / (np.linalg.norm(along) + 1e-9)
            u = self.x[here] * direction[0] + self.y[here] * direction[1]
            v = self.y[here] * direction[0] - self.x[here] * direction[1]
            streaks = fractal(u * 9, v * 150, self.seed + 6, 2)
            ink = ink * (1 - dry * np.clip((streaks - 0.42) * 6, 0, 1))
        self.density[here] += ink * dark
        self.red[here] = np.maximum(self.red[here], np.clip(ink * red, 0, 1))

    @staticmethod
    def _reduced(layer: Image.Image) -> np.ndarray:
        small = layer.resize((layer.width // FINER, layer.height // FINER), Image.Resampling.BOX)
        return np.asarray(small, np.float32) / 255


def _curve(points: np.ndarray, parts: int = 14) -> np.ndarray:
    """Return a smooth path through `points` [n, 2] (a Catmull-Rom spline)."""
    padded = np.concatenate([[2 * points[0] - points[1]], points, [2 * points[-1] - points[-2]]])
    t = np.linspace(0, 1, parts, endpoint=False)[:, None]
    pieces = []
    for a, b, c, d in zip(padded, padded[1:], padded[2:], padded[3:], strict=False):
        cubic = (2 * a - 5 * b + 4 * c - d, 3 * b - a - 3 * c + d)
        pieces.append((2 * b + (c - a) * t + cubic[0] * t**2 + cubic[1] * t**3) / 2)
    return np.concatenate([*pieces, points[-1:]])
