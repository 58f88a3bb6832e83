"""Stateless random numbers: every sample is a pure function of a seed, a stream name and indices.

A run that is resumed, moved to another device, run in the other mode or split over more ranks uses the same (seed,
stream, index) and gets the same numbers. MindSpore's own generator state is not restored by `set_rng_state`. Built on
NumPy's Philox counter-based generator (Salmon et al., 2011, "Parallel random numbers: as easy as 1, 2, 3").
"""

from __future__ import annotations

import hashlib

import numpy as np

INITIAL_NOISE = "picture"  # a stream name; another name would give every seed another image


def generator(seed: int, stream: str, *index: int | str) -> np.random.Generator:
    """Return a new generator for (`seed`, `stream`, `index`); equal arguments give equal numbers."""
    key = int.from_bytes(hashlib.blake2b(repr((seed, stream, index)).encode(), digest_size=16).digest(), "little")
    return np.random.Generator(np.random.Philox(key=key))


def normal(shape: tuple[int, ...], seed: int, stream: str, *index: int) -> np.ndarray:
    """Return standard-normal float32 numbers of `shape`."""
    return generator(seed, stream, *index).standard_normal(shape, dtype=np.float32)


def integer(below: int, seed: int, stream: str, *index: int) -> int:
    """Return one integer, uniform over 0 … `below` - 1."""
    return int(generator(seed, stream, *index).integers(below))


def permutation(n: int, seed: int, stream: str, *index: int) -> np.ndarray:
    """Return the numbers 0 … `n` - 1 in random order, shape [n]."""
    return generator(seed, stream, *index).permutation(n)
