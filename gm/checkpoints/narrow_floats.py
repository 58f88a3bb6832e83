"""Float types that files have and NumPy lacks: bfloat16 and the two float8 of Micikevicius et al. (2022).

https://arxiv.org/abs/2209.05433, table 1: E5M2 is the upper half of a float16. E4M3, "fn" because it is finite, has
exponent bias 7, no infinity, and NaN where all bits but the sign are set. float16 holds every value of both.
"""

from __future__ import annotations

import numpy as np

STORAGE = {"bfloat16": "uint16", "float8_e4m3fn": "uint8", "float8_e5m2": "uint8"}  # NumPy's type of the bits
FLOAT8 = ("float8_e4m3fn", "float8_e5m2")


def decode(bits: np.ndarray, dtype: str) -> np.ndarray:
    """Return the values of `bits` in the type `STORAGE[dtype]`: bfloat16 as float32, float8 as float16, all exact."""
    if dtype == "bfloat16":  # the upper half of a float32
        return (bits.astype(np.uint32) << 16).view(np.float32)
    return _TABLES[dtype][bits]


def _float16(bits: np.ndarray) -> np.ndarray:
    return bits.astype(np.uint16).view(np.float16)


def _e4m3fn_values() -> np.ndarray:
    """Return the 256 values: the same fields in a float16, whose exponent bias is larger by 8."""
    bits = np.arange(256, dtype=np.uint16)
    values = _float16(((bits & 0x80) << 8) | ((bits & 0x7F) << 7)) * np.float16(256.0)
    values[[0x7F, 0xFF]] = np.nan
    return values


_TABLES = {"float8_e4m3fn": _e4m3fn_values(), "float8_e5m2": _float16(np.arange(256, dtype=np.uint16) << 8)}
