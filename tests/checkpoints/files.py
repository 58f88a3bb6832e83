"""Small sets of tensors of every dtype, and damaged copies of files."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from gm.checkpoints.lazy_tensor import LazyTensor, in_memory

DTYPES = ["float16", "float32", "float64", "bool"]
DTYPES += [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]


def mixed(seed: int = 0) -> dict[str, np.ndarray]:
    """Return a tensor of each dtype in odd sizes, a scalar, and keys in no order."""
    noise = np.random.default_rng(seed)
    tensors = {f"z.{dtype}": noise.integers(0, 2, (3, 5, 2)).astype(dtype) for dtype in DTYPES}
    tensors["scalar"] = np.array(4.6052, np.float16)
    tensors["α.one"] = noise.standard_normal(1).astype(np.float32)
    tensors["a.matrix"] = noise.standard_normal((7, 300)).astype(np.float32)
    return tensors


def lazy(tensors: dict[str, np.ndarray]) -> dict[str, LazyTensor]:
    return {name: in_memory(array) for name, array in tensors.items()}


def assert_equal(tensors: dict[str, LazyTensor], expected: dict[str, np.ndarray]) -> None:
    """Assert that keys, shapes, dtypes and every bit agree."""
    assert set(tensors) == set(expected)
    for name, array in expected.items():
        values = tensors[name].read()
        assert (tensors[name].shape, tensors[name].dtype) == (array.shape, array.dtype.name), name
        assert (values.shape, values.dtype) == (array.shape, array.dtype), name
        assert values.tobytes() == array.tobytes(), name
        tensors[name].release()
        assert values.tobytes() == array.tobytes(), f"{name} after its pages were released"


def cuts(length: int) -> Iterator[int]:
    """Yield lengths at which to cut a file: every byte of its beginning and end, and some in between."""
    yield from range(1, min(length, 300))
    yield from range(300, length, 97)
    yield from range(max(300, length - 50), length)


def replace_file(path: Path, content: bytes) -> None:
    """Write a new file to `path`; truncating an existing one takes ten times longer, because ext4 flushes it."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def mutations(whole: bytes, count: int, seed: int = 1) -> Iterator[bytes]:
    """Yield `count` damaged copies: up to eight places each changed, left out or filled with other bytes."""
    rng = random.Random(seed)
    for _ in range(count):
        changed = bytearray(whole)
        for _ in range(rng.randint(1, 8)):
            place = rng.randrange(len(changed))
            match rng.randrange(3):
                case 0:
                    changed[place] = rng.randrange(256)
                case 1:
                    del changed[place : place + rng.randint(1, 40)]
                case _:
                    changed[place:place] = rng.randbytes(rng.randint(1, 20))
        yield bytes(changed)


@contextmanager
def little_memory(megabytes: int = 64) -> Iterator[None]:
    """Assert that the block never allocates more memory."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < megabytes * 2**20
    finally:
        tracemalloc.stop()
