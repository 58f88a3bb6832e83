"""The bfloat16 operators of the CPU in tests, or what replaces them where something that they need is missing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np

from gm.runtime import onednn

UNAVAILABLE = "neither AVX512-BF16 nor AMX|no oneDNN 3|no C\\+\\+ compiler|oneDNN does not use bfloat16"


@contextlib.contextmanager
def operators() -> Iterator[bool]:
    """Load the operators for a block; the value says whether they are there. Other tests are without them."""
    try:
        with contextlib.suppress(onednn.Unavailable):
            onednn.load()
        yield bool(onednn.library())
    finally:
        onednn._path = ""


def rounded(x: np.ndarray) -> np.ndarray:
    """Return float32 values rounded to bfloat16, to the nearest, ties to even."""
    bits = x.astype(np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16).astype(np.uint32).view(np.float32)
