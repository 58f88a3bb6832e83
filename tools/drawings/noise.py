"""Smooth random textures: random numbers on the points of a lattice, blended in between."""

from __future__ import annotations

import numpy as np


def lattice(x: np.ndarray, y: np.ndarray, seed: int) -> np.ndarray:
    """Return a number in 0..1 for each pair of whole numbers, the same for the same pair and seed."""
    h = x.astype(np.int64).astype(np.uint32) * np.uint32(374761393) + np.uint32(seed * 3266489917 % 2**32)
    h = (h ^ (h >> np.uint32(15))) + y.astype(np.int64).astype(np.uint32) * np.uint32(668265263)
    for shift, factor in ((13, 2246822519), (16, 3266489917), (15, 374761393)):
        h = (h ^ (h >> np.uint32(shift))) * np.uint32(factor)
    return (h >> np.uint32(8)).astype(np.float32) / np.float32(2**24)


def smooth(x: np.ndarray, y: np.ndarray | float, seed: int) -> np.ndarray:
    """Return noise in 0..1 whose hills are one unit of `x` and `y` wide."""
    x, y = np.broadcast_arrays(np.asarray(x, np.float32), np.asarray(y, np.float32))
    left, top = np.floor(x), np.floor(y)
    u, v = x - left, y - top
    u, v = u * u * (3 - 2 * u), v * v * (3 - 2 * v)
    upper = lattice(left, top, seed) * (1 - u) + lattice(left + 1, top, seed) * u
    lower = lattice(left, top + 1, seed) * (1 - u) + lattice(left + 1, top + 1, seed) * u
    return upper * (1 - v) + lower * v


def fractal(x: np.ndarray, y: np.ndarray | float, seed: int, octaves: int = 4) -> np.ndarray:
    """Return noise in 0..1 with detail: `octaves` layers, each half as wide and half as strong as the one before."""
    total = np.zeros(np.broadcast(x, y).shape, np.float32)
    for k in range(octaves):
        total += smooth(np.asarray(x) * 2**k, np.asarray(y) * 2**k, seed + 101 * k) / 2**k
    return total / (2 - 2 ** (1 - octaves))
