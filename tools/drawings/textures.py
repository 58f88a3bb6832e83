"""What floors, walls and skies look like: colours 0..1 [n, 3] at places (x, z), (x, y) or (azimuth, height) [n]."""

from __future__ import annotations

import numpy as np

from tools.drawings.noise import fractal, lattice, smooth


def _mix(t: np.ndarray, a: tuple, b: tuple) -> np.ndarray:
    t = np.clip(t, 0, 1)[:, None]
    return np.array(a, np.float32) * (1 - t) + np.array(b, np.float32) * t


def table(x: np.ndarray, z: np.ndarray, seed: int) -> np.ndarray:
    """Wooden boards."""
    board = np.floor(z / 0.9)
    grain = fractal(x * 0.7 + 31 * board, z * 9 + 3 * smooth(x * 0.8, z, seed), seed + 1)
    colour = _mix(grain * 1.1 - 0.05, (0.50, 0.30, 0.16), (0.78, 0.55, 0.33))
    return colour * np.where(np.mod(z, 0.9) < 0.02, 0.55, 1)[:, None]


def plaster(x: np.ndarray, y: np.ndarray, seed: int) -> np.ndarray:
    """An uneven wall."""
    return _mix(fractal(x * 0.5, y * 0.5, seed + 2), (0.80, 0.74, 0.66), (0.90, 0.86, 0.78))


def turf(x: np.ndarray, z: np.ndarray, seed: int) -> np.ndarray:
    """The ground under the grass."""
    return _mix(fractal(x * 3, z * 3, seed + 3), (0.18, 0.33, 0.09), (0.36, 0.52, 0.16))


def garden(azimuth: np.ndarray, height: np.ndarray, seed: int) -> np.ndarray:
    """A hedge and the sky."""
    sky = _mix(height * 2.2, (0.88, 0.94, 0.98), (0.50, 0.72, 0.93))
    bush = _mix(fractal(azimuth * 22, height * 22, seed + 4), (0.10, 0.25, 0.10), (0.42, 0.58, 0.25))
    top = 0.10 + 0.16 * fractal(azimuth * 5, 0.0, seed + 5, 3)
    return np.where((height < top)[:, None], bush, sky)


def board(x: np.ndarray, z: np.ndarray, seed: int) -> np.ndarray:
    """Whitewashed wood."""
    return _mix(fractal(x * 0.8, z * 14, seed + 6), (0.82, 0.78, 0.70), (0.93, 0.90, 0.83))


def books(x: np.ndarray, y: np.ndarray, seed: int) -> np.ndarray:
    """Backs of books, side by side."""
    across = x * 3.1 + 0.35 * np.sin(x * 5)
    number = np.floor(across)
    inside = across - number
    spines = np.array([
        (0.55, 0.16, 0.14), (0.16, 0.24, 0.42), (0.80, 0.70, 0.48), (0.24, 0.36, 0.24),
        (0.86, 0.84, 0.80), (0.44, 0.28, 0.40), (0.72, 0.46, 0.20), (0.20, 0.20, 0.22),
    ], np.float32)  # fmt: skip
    colour = spines[(lattice(number, number * 0, seed + 7) * 8).astype(int)]
    tall = 1.75 + 0.75 * lattice(number, number * 0 + 5, seed + 7)
    band = np.abs(y / tall - 0.78) < 0.04
    colour = np.where(band[:, None], 0.5 * colour + 0.45, colour)
    rounded = (0.35 + 2.6 * inside * (1 - inside))[:, None]
    return np.where((y < tall)[:, None], np.clip(colour * rounded, 0, 1), np.array((0.25, 0.19, 0.15), np.float32))


def carpet(x: np.ndarray, z: np.ndarray, seed: int) -> np.ndarray:
    """Squares within squares."""
    u, v = np.mod(x + z, 1.1) / 1.1 - 0.5, np.mod(x - z, 1.1) / 1.1 - 0.5
    ring = np.maximum(np.abs(u), np.abs(v))
    colour = _mix(fractal(x * 30, z * 30, seed + 8, 2), (0.50, 0.12, 0.16), (0.64, 0.20, 0.22))
    colour = np.where(((ring > 0.40) & (ring < 0.45))[:, None], np.array((0.88, 0.78, 0.55), np.float32), colour)
    colour = np.where((ring < 0.22)[:, None], np.array((0.16, 0.19, 0.34), np.float32), colour)
    colour = np.where((np.hypot(u, v) < 0.10)[:, None], np.array((0.88, 0.78, 0.55), np.float32), colour)
    return colour * (0.82 + 0.3 * smooth(x * 46, z * 46, seed + 9))[:, None]


def sand(x: np.ndarray, z: np.ndarray, seed: int) -> np.ndarray:
    """Sand up to the sea, which begins nine units away."""
    ripple = fractal(x * 1.2, z * 5 + smooth(x, z, seed), seed + 10)
    colour = (
        _mix(ripple, (0.74, 0.60, 0.42), (0.95, 0.85, 0.66))
        * (0.93 + 0.12 * smooth(x * 60, z * 60, seed + 11))[:, None]
    )
    shore = z + 9 + 0.8 * np.sin(x * 0.5)
    wave = fractal(x * 0.6, z * 2.5, seed + 12)
    sea = _mix(wave, (0.12, 0.42, 0.52), (0.35, 0.66, 0.70))
    sea = np.where((shore > -0.9)[:, None], np.array((0.95, 0.97, 0.96), np.float32), sea)
    return np.where((shore < 0)[:, None], sea, colour)


def evening(azimuth: np.ndarray, height: np.ndarray, seed: int) -> np.ndarray:
    """A pink sky with clouds."""
    sky = _mix(height * 3, (0.99, 0.83, 0.66), (0.56, 0.68, 0.86))
    cloud = np.clip(fractal(azimuth * 5, height * 26, seed + 13) * 2.4 - 1.15, 0, 1)[:, None]
    return sky * (1 - 0.7 * cloud) + np.array((1.0, 0.95, 0.92), np.float32) * 0.7 * cloud


def cloth(x: np.ndarray, z: np.ndarray, seed: int) -> np.ndarray:
    """Blue and white checks."""
    fold = x + 0.05 * np.sin(2 * z), z + 0.05 * np.sin(1.7 * x)
    count = sum((np.mod(a, 0.5) < 0.25).astype(int) for a in fold)
    colour = np.array([(0.95, 0.94, 0.90), (0.62, 0.70, 0.85), (0.22, 0.34, 0.62)], np.float32)[count]
    return colour * (0.92 + 0.12 * smooth(x * 50, z * 50, seed + 14))[:, None]


def kitchen(x: np.ndarray, y: np.ndarray, seed: int) -> np.ndarray:
    """Pale tiles."""
    joint = (np.mod(x, 0.8) < 0.03) | (np.mod(y, 0.8) < 0.03)
    tile = 0.92 + 0.08 * lattice(np.floor(x / 0.8), np.floor(y / 0.8), seed + 15)
    return np.where(
        joint[:, None],
        np.array((0.72, 0.74, 0.70), np.float32),
        np.array((0.86, 0.90, 0.84), np.float32) * tile[:, None],
    )
