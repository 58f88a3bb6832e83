"""The CPU's operators over oneDNN in tests, or what replaces them where something that they need is missing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import pytest

from gm.runtime import backend, onednn

UNAVAILABLE = "neither AVX512-BF16 nor AMX|no oneDNN 3|no C\\+\\+ compiler|oneDNN does not use bfloat16"


@contextlib.contextmanager
def bfloat16_operators() -> Iterator[bool]:
    """Load the operators in bfloat16 for a block; the value says whether they are there."""
    with _as_before() as patch:
        patch.setattr(onednn, "_has_bfloat16", False)
        with contextlib.suppress(onednn.Unavailable):
            onednn.load_bfloat16()
        yield onednn.has_bfloat16()


@contextlib.contextmanager
def flash_attention_operators() -> Iterator[bool]:
    """Let networks use flash attention in a block; the value says whether it is there."""
    with _as_before() as patch:
        with contextlib.suppress(onednn.Unavailable):
            onednn.load()
            patch.setattr(backend, "_flash_attention", "auto")
        yield bool(onednn.library())


@contextlib.contextmanager
def no_operators() -> Iterator[None]:
    """Let networks be composed of MindSpore's operators in a block, as where there is no compiler."""
    with _as_before() as patch:
        patch.setattr(onednn, "_path", "")
        patch.setattr(backend, "_flash_attention", "off")
        yield


@contextlib.contextmanager
def _as_before() -> Iterator[pytest.MonkeyPatch]:
    """Return what patches modules in a block; the library is afterwards the one of before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onednn, "_path", onednn.library())
        patch.setattr(onednn, "_has_bfloat16", onednn.has_bfloat16())
        yield patch


def rounded(x: np.ndarray) -> np.ndarray:
    """Return float32 values rounded to bfloat16, to the nearest, ties to even."""
    bits = x.astype(np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16).astype(np.uint32).view(np.float32)
