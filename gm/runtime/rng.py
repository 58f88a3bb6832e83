"""Random numbers without a state: each draw is a pure function of what it is for.

A run that was interrupted, moved to another device, started in the other mode or split over more ranks asks for the
same (seed, purpose, index) and gets the same numbers. Built on NumPy's Philox counter generator (Salmon et al., 2011,
"Parallel random numbers: as easy as 1, 2, 3").
"""

from __future__ import annotations

import hashlib

import numpy as np

# A stream's name is part of every result that was ever reported: another name is another noise.
INITIAL_NOISE = "picture"


def generator(seed: int, purpose: str, *index: int | str) -> np.random.Generator:
    """Return a fresh generator for (`seed`, `purpose`, `index`); equal arguments give equal streams."""
    key = int.from_bytes(hashlib.blake2b(repr((seed, purpose, index)).encode(), digest_size=16).digest(), "little")
    return np.random.Generator(np.random.Philox(key=key))


def normal(shape: tuple[int, ...], seed: int, purpose: str, *index: int) -> np.ndarray:
    """Return standard-normal float32 numbers of `shape`."""
    return generator(seed, purpose, *index).standard_normal(shape, dtype=np.float32)


def integer(below: int, seed: int, purpose: str, *index: int) -> int:
    """Return one integer, uniform over 0 … `below` - 1."""
    return int(generator(seed, purpose, *index).integers(below))


def permutation(n: int, seed: int, purpose: str, *index: int) -> np.ndarray:
    """Return the numbers 0 … `n` - 1 in random order, shape [n]."""
    return generator(seed, purpose, *index).permutation(n)
