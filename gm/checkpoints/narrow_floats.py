"""Float types that files have and NumPy lacks: bfloat16 and the two float8 of Micikevicius et al. (2022).

https://arxiv.org/abs/2209.05433, table 1: E5M2 is the upper half of a float16. E4M3, "fn" because it is finite, has
exponent bias 7, no infinity, and NaN where all bits but the sign are set. float16 holds every value of both.
"""

from __future__ import annotations

import numpy as np

STORAGE = {"bfloat16": "uint16", "float8_e4m3fn": "uint8", "float8_e5m2": "uint8"}  # NumPy's type of the bits
FLOAT8 = ("float8_e4m3fn", "float8_e5m2")

_CHUNK = 1 << 16  # values looked up at once, within the processor's cache: twice as fast as all at once


def decode(bits: np.ndarray, dtype: str) -> np.ndarray:
    """Return the values of `bits` in the type `STORAGE[dtype]`: bfloat16 as float32, float8 as float16, all exact."""
    if dtype == "bfloat16":  # the upper half of a float32
        return (bits.astype(np.uint32) << 16).view(np.float32)
    if dtype == "float8_e5m2":
        return (bits.astype(np.uint16) << 8).view(np.float16)
    flat = np.ascontiguousarray(bits).reshape(-1)
    values = np.empty(flat.shape, np.float16)
    for start in range(0, flat.size, _CHUNK):
        part = slice(start, start + _CHUNK)
        _E4M3FN.take(flat[part], out=values[part], mode="clip")  # the default mode buffers the output
    return values.reshape(bits.shape)


def _e4m3fn_values() -> np.ndarray:
    """Return the 256 values: the same fields in a float16, whose exponent bias is larger by 8."""
    bits = np.arange(256, dtype=np.uint16)
    values = (((bits & 0x80) << 8) | ((bits & 0x7F) << 7)).view(np.float16) * np.float16(256.0)
    values[[0x7F, 0xFF]] = np.nan
    return values


_E4M3FN = _e4m3fn_values()
