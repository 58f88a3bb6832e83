"""The cat toy as a solid: felt-covered balls and rolls, each with its distance and its colours.

Coordinates: x to its left paw's side, y up, z where it looks; it is about 2.1 units tall.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TEAL, ORANGE, CREAM = (0.10, 0.42, 0.45), (0.93, 0.45, 0.10), (0.96, 0.88, 0.72)
PINK, RED, GOLD, BLACK = (0.93, 0.52, 0.55), (0.75, 0.08, 0.12), (0.95, 0.70, 0.15), (0.03, 0.03, 0.04)


Points = tuple[np.ndarray, np.ndarray, np.ndarray]  # x, y, z apart: NumPy is several times faster so


@dataclass(frozen=True)
class Ball:
    """An ellipsoid."""

    name: str
    centre: tuple[float, float, float]
    radii: tuple[float, float, float]

    def distance(self, points: Points) -> np.ndarray:
        """Return about how far `points` are outside, as their length in radii over its slope."""
        q = [(p - np.float32(c)) * np.float32(1 / r) for p, c, r in zip(points, self.centre, self.radii, strict=True)]
        squares = [k * k for k in q]
        length = np.sqrt(squares[0] + squares[1] + squares[2])
        slope = sum(k * np.float32(1 / r**2) for k, r in zip(squares, self.radii, strict=True))
        return length * (length - 1) / np.sqrt(slope + np.float32(1e-9))

    def lowest(self, down: np.ndarray) -> float:
        """Return how far the ball reaches in the direction `down`."""
        return float(down @ np.array(self.centre) + np.linalg.norm(down * np.array(self.radii)))


@dataclass(frozen=True)
class Roll:
    """A straight roll from `start` to `end` whose radius changes evenly; `flat` presses it in z."""

    name: str
    start: tuple[float, float, float]
    end: tuple[float, float, float]
    radii: tuple[float, float]
    flat: float = 1.0

    def distance(self, points: Points) -> np.ndarray:
        """Return about how far `points` are outside."""
        press = (1.0, 1.0, self.flat)
        q = [(p - np.float32(c)) * np.float32(k) for p, c, k in zip(points, self.start, press, strict=True)]
        axis = [np.float32((b - a) * k) for a, b, k in zip(self.start, self.end, press, strict=True)]
        t = np.clip((q[0] * axis[0] + q[1] * axis[1] + q[2] * axis[2]) / sum(k * k for k in axis), 0, 1)
        off = [k - t * a for k, a in zip(q, axis, strict=True)]
        radius = np.float32(self.radii[0]) + t * np.float32(self.radii[1] - self.radii[0])
        return (np.sqrt(off[0] ** 2 + off[1] ** 2 + off[2] ** 2) - radius) * np.float32(1 / self.flat)

    def lowest(self, down: np.ndarray) -> float:
        """Return how far the roll reaches in the direction `down`, pressing left aside."""
        ends = zip((self.start, self.end), self.radii, strict=True)
        return max(float(down @ np.array(point)) + radius for point, radius in ends)


@dataclass(frozen=True)
class Ring:
    """A ring around the axis of y (`upright` False) or of z; it reaches `half` a turn to either side of `middle`."""

    name: str
    centre: tuple[float, float, float]
    radius: float
    thickness: float
    upright: bool
    half: float = float(np.pi)
    middle: float = 0.0

    def distance(self, points: Points) -> np.ndarray:
        """Return how far `points` are outside."""
        x, y, z = (p - np.float32(c) for p, c in zip(points, self.centre, strict=True))
        v, w = (y, z) if self.upright else (z, y)
        span = np.sqrt(x * x + v * v)
        in_plane = np.abs(span - np.float32(self.radius))
        if self.half < np.pi:
            cos, sin = np.float32(np.cos(self.half)), np.float32(np.sin(self.half))
            turn = np.array([np.cos(self.middle), np.sin(self.middle)], np.float32)
            x, v = x * turn[0] + v * turn[1], v * turn[0] - x * turn[1]
            end = np.hypot(x - np.float32(self.radius) * cos, np.abs(v) - np.float32(self.radius) * sin)
            in_plane = np.where(x > cos * span, in_plane, end)
        return np.sqrt(in_plane * in_plane + w * w) - np.float32(self.thickness)

    def lowest(self, down: np.ndarray) -> float:
        """Return how far the ring, taken as closed, reaches in the direction `down`."""
        plane = down[[0, 1]] if self.upright else down[[0, 2]]
        return float(down @ np.array(self.centre) + self.radius * np.linalg.norm(plane) + self.thickness)


PARTS: list[Ball | Roll | Ring] = [
    Ball("body", (0, 0.60, 0), (0.53, 0.60, 0.47)),
    Ball("head", (0, 1.48, 0.08), (0.58, 0.47, 0.46)),
    Roll("ear", (0.34, 1.76, 0.06), (0.46, 2.06, 0.04), (0.19, 0.045), 1.7),
    Roll("ear", (-0.34, 1.76, 0.06), (-0.46, 2.06, 0.04), (0.19, 0.045), 1.7),
    Ball("cheek", (0.11, 1.34, 0.46), (0.155, 0.12, 0.11)),
    Ball("cheek", (-0.11, 1.34, 0.46), (0.155, 0.12, 0.11)),
    Ball("nose", (0, 1.435, 0.565), (0.06, 0.042, 0.04)),
    Ball("eye", (0.235, 1.56, 0.455), (0.085, 0.10, 0.06)),
    Ball("eye", (-0.235, 1.56, 0.455), (0.085, 0.10, 0.06)),
    Ball("glint", (0.262, 1.60, 0.508), (0.026, 0.026, 0.016)),
    Ball("glint", (-0.208, 1.60, 0.508), (0.026, 0.026, 0.016)),
    Roll("arm", (0.36, 0.92, 0.20), (0.27, 0.50, 0.50), (0.13, 0.12)),
    Roll("arm", (-0.36, 0.92, 0.20), (-0.27, 0.50, 0.50), (0.13, 0.12)),
    Ball("paw", (0.265, 0.46, 0.52), (0.135, 0.12, 0.12)),
    Ball("paw", (-0.265, 0.46, 0.52), (0.135, 0.12, 0.12)),
    Ball("foot", (0.33, 0.15, 0.42), (0.19, 0.15, 0.26)),
    Ball("foot", (-0.33, 0.15, 0.42), (0.19, 0.15, 0.26)),
    Ball("bell", (0, 0.97, 0.44), (0.105, 0.105, 0.105)),
    Ring("collar", (0, 1.09, 0.03), 0.35, 0.065, upright=False),
    Ring("tail", (0.57, 0.44, -0.32), 0.345, 0.115, upright=True, half=2.2, middle=-0.5),
]

PLAIN = {
    "cheek": CREAM,
    "nose": PINK,
    "eye": BLACK,
    "glint": (1.0, 1.0, 1.0),
    "arm": TEAL,
    "paw": CREAM,
    "bell": GOLD,
    "collar": RED,
}
SHINY = {"eye", "glint", "nose", "bell"}


def distance(p: np.ndarray) -> np.ndarray:
    """Return about how far each of the points `p` [n, 3] is from the toy."""
    points = _apart(p)
    nearest = PARTS[0].distance(points)
    for part in PARTS[1:]:
        np.minimum(nearest, part.distance(points), out=nearest)
    return nearest


def colours(p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (red green blue 0..1 [n, 3], shininess 0 or 1 [n]) at points `p` [n, 3] of the surface."""
    points = _apart(p)
    nearest = np.argmin(np.stack([part.distance(points) for part in PARTS]), axis=0)
    colour, shiny = np.zeros_like(p), np.zeros(len(p), np.float32)
    for number, part in enumerate(PARTS):
        here = nearest == number
        if not here.any():
            continue
        colour[here] = PATTERNS[part.name](p[here]) if part.name in PATTERNS else np.array(PLAIN[part.name], np.float32)
        shiny[here] = part.name in SHINY
    return colour, shiny


def _apart(p: np.ndarray) -> Points:
    x, y, z = np.ascontiguousarray(p.T)
    return x, y, z


def _paint(colour: np.ndarray, where: np.ndarray, paint: tuple[float, float, float]) -> None:
    colour[where] = np.array(paint, np.float32)


def _body(p: np.ndarray) -> np.ndarray:
    x, y, z = p.T
    colour = np.tile(np.array(TEAL, np.float32), (len(p), 1))
    bent = y + 0.06 * np.cos(4 * np.arctan2(x, -z))
    _paint(colour, np.mod(bent + 0.02, 0.24) < 0.10, ORANGE)
    _paint(colour, (z > 0) & ((x / 0.34) ** 2 + ((y - 0.52) / 0.42) ** 2 < 1), CREAM)
    _paint(colour, (z > 0) & _heart(x / 0.15, (y - 0.56) / 0.15), RED)
    return colour


def _heart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x**2 + y**2 - 0.6) ** 3 - 1.4 * x**2 * y**3 < 0


def _head(p: np.ndarray) -> np.ndarray:
    x, y, z = p.T
    colour = np.tile(np.array(TEAL, np.float32), (len(p), 1))
    for place, bottom in ((-0.15, 1.74), (0.0, 1.69), (0.15, 1.74)):  # three stripes from the brow to the neck
        _paint(colour, (np.abs(x - place * (0.6 + 0.4 * np.abs(z))) < 0.042) & ((y > bottom) | (z < -0.05)), ORANGE)
    _paint(colour, (z > 0) & ((x - 0.235) ** 2 / 0.155**2 + (y - 1.565) ** 2 / 0.17**2 < 1), ORANGE)  # one ringed eye
    _paint(colour, (z > 0) & ((x / 0.34) ** 2 + ((y - 1.30) / 0.17) ** 2 < 1), CREAM)
    for side in (-1, 1):
        for slope, start in ((0.22, 1.385), (0.0, 1.345), (-0.22, 1.305)):
            along = side * x - 0.30
            _paint(colour, (z > 0) & (along > 0) & (along < 0.2) & (np.abs(y - start - slope * along) < 0.011), BLACK)
    return colour


def _cheek(p: np.ndarray) -> np.ndarray:
    colour = np.tile(np.array(CREAM, np.float32), (len(p), 1))
    seam = (np.abs(p[:, 0]) < 0.014) & (p[:, 1] < 1.42)
    ring = np.abs(np.hypot(np.abs(p[:, 0]) - 0.085, p[:, 1] - 1.345) - 0.085)
    _paint(colour, seam | ((ring < 0.013) & (p[:, 1] < 1.335)), BLACK)
    return colour


def _ear(p: np.ndarray) -> np.ndarray:
    x, y, z = p.T
    own = np.where(x[:, None] > 0, np.array(ORANGE, np.float32), np.array(TEAL, np.float32))  # the ears differ
    middle = 0.34 + 0.12 * (y - 1.76) / 0.30
    inner = (z > 0.07) & (np.abs(np.abs(x) - middle) < 0.115 - 0.30 * (y - 1.76)) & (y > 1.70)
    _paint(own, inner, PINK)
    return own


def _foot(p: np.ndarray) -> np.ndarray:
    x, y, z = p.T
    colour = np.tile(np.array(CREAM, np.float32), (len(p), 1))
    toe = np.minimum(np.abs(np.abs(x) - 0.28), np.abs(np.abs(x) - 0.38))
    _paint(colour, (z > 0.56) & (toe < 0.014) & (y > 0.06) & (y < 0.22), BLACK)
    return colour


def _tail(p: np.ndarray) -> np.ndarray:
    turn = np.arctan2(p[:, 1] - 0.44, p[:, 0] - 0.57)
    colour = np.where(np.mod(turn, 0.72)[:, None] < 0.36, np.array(ORANGE, np.float32), np.array(TEAL, np.float32))
    _paint(colour, turn > 1.15, CREAM)
    return colour


PATTERNS = {"body": _body, "head": _head, "ear": _ear, "foot": _foot, "cheek": _cheek, "tail": _tail}
