"""gm/checkpoints/lazy_tensor.py: casts and shapes of lazy tensors."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from gm.checkpoints.lazy_tensor import cast, cast_values, in_memory, reshaped
from gm.errors import UserError


def test_values_that_have_the_dtype_are_not_copied() -> None:
    values = np.ones(3, np.float16)
    assert cast_values(values, "float16", "a") is values


def test_float16_overflow_names_the_tensor() -> None:
    values = np.array([1.0, -70000.0, np.inf], np.float32)
    with pytest.raises(UserError, match=r"block\.weight holds 70000, too large for float16; use float32"):
        cast_values(values, "float16", "block.weight")


def test_overflow_of_bfloat16_values_of_a_parameter_names_the_tensor() -> None:
    values = Tensor([1.0, -(2.0**100)], ms.bfloat16).asnumpy()
    assert cast_values(values, "float32", "a").tolist() == [1.0, -(2.0**100)]
    with pytest.raises(UserError, match=r"block\.weight holds 1\.26765e\+30, too large for float16; use float32"):
        cast_values(values, "float16", "block.weight")


def test_values_that_are_not_finite_are_kept() -> None:
    values = np.array([np.inf, -np.inf, np.nan, 65504.0], np.float32)
    assert np.array_equal(cast_values(values, "float16", "a"), values.astype(np.float16), equal_nan=True)


def test_casting_and_reshaping_are_lazy() -> None:
    tensor = in_memory(np.full((2, 3), 1e6, np.float32))
    small = cast(reshaped(tensor, (3, 2, 1)), "float16", "a")
    assert (small.shape, small.dtype, small.size) == ((3, 2, 1), "float16", 12)
    with pytest.raises(UserError):
        small.read()
    assert cast(reshaped(tensor, (3, 2, 1)), "float64", "a").read().shape == (3, 2, 1)
