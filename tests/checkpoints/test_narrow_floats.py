"""gm/checkpoints/narrow_floats.py: bfloat16 and float8, value by value."""

from __future__ import annotations

import numpy as np
import pytest

from gm.checkpoints import narrow_floats

ALL = np.arange(256, dtype=np.uint8)


def test_float8_has_the_values_of_its_paper() -> None:
    """Micikevicius et al. (2022), table 1: least and greatest numbers, infinity and NaN."""
    e4m3 = narrow_floats.decode(np.array([0x00, 0x01, 0x07, 0x08, 0x7E, 0x7F, 0xFE], np.uint8), "float8_e4m3fn")
    assert np.array_equal(e4m3, [0.0, 2**-9, 0.875 * 2**-6, 2**-6, 448.0, np.nan, -448.0], equal_nan=True)
    e5m2 = narrow_floats.decode(np.array([0x00, 0x01, 0x04, 0x7B, 0x7C, 0x7F, 0xFB], np.uint8), "float8_e5m2")
    assert np.array_equal(e5m2, [0.0, 2**-16, 2**-14, 57344.0, np.inf, np.nan, -57344.0], equal_nan=True)


@pytest.mark.reference
@pytest.mark.parametrize("dtype", narrow_floats.FLOAT8)
def test_all_float8_values_are_pytorchs(dtype: str) -> None:
    import torch

    expected = torch.from_numpy(ALL).view(getattr(torch, dtype)).float().numpy()
    values = narrow_floats.decode(ALL, dtype)
    assert values.dtype == np.float16
    assert np.array_equal(narrow_floats.decode(ALL.reshape(16, 16).T, dtype), values.reshape(16, 16).T, equal_nan=True)
    assert np.array_equal(values.astype(np.float32), expected, equal_nan=True)


def test_bfloat16_is_the_upper_half_of_a_float32() -> None:
    values = np.array([1.0, -2.5, 3.140625, 1e38], np.float32)
    bits = values.view(np.uint32) >> 16
    assert np.array_equal(narrow_floats.decode(bits.astype(np.uint16)[:3], "bfloat16"), values[:3])
