"""Small sets of tensors of every kind that the containers hold."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gm.weights.lazy import LazyTensor, in_memory

DTYPES = (
    *("float16", "float32", "float64", "bool"),
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
)


def mixed(seed: int = 0) -> dict[str, np.ndarray]:
    """Return a tensor of each dtype in odd sizes, a scalar, and names in no order."""
    random = np.random.default_rng(seed)
    tensors = {f"z.{dtype}": random.integers(0, 2, (3, 5, 2)).astype(dtype) for dtype in DTYPES}
    tensors["scalar"] = np.array(4.6052, np.float16)
    tensors["α.one"] = random.standard_normal(1).astype(np.float32)
    tensors["a.matrix"] = random.standard_normal((7, 300)).astype(np.float32)
    return tensors


def lazy(tensors: dict[str, np.ndarray]) -> dict[str, LazyTensor]:
    return {name: in_memory(array) for name, array in tensors.items()}


def assert_equal(found: dict[str, LazyTensor], expected: dict[str, np.ndarray]) -> None:
    """Assert that names, shapes, dtypes and every bit agree."""
    assert set(found) == set(expected)
    for name, array in expected.items():
        values = found[name].read()
        assert (found[name].shape, found[name].dtype) == (array.shape, array.dtype.name), name
        assert (values.shape, values.dtype) == (array.shape, array.dtype), name
        assert values.tobytes() == array.tobytes(), name
        found[name].release()
        assert values.tobytes() == array.tobytes(), f"{name} after its pages were released"


def cuts(length: int) -> Iterator[int]:
    """Yield lengths at which to cut a file: every byte of its beginning and end, and some between."""
    yield from range(1, min(length, 300))
    yield from range(300, length, 97)
    yield from range(max(300, length - 50), length)
