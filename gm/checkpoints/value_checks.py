"""Checks of the values of weights: floats, and finite. They cost 1 to 2 s for all of SDXL."""

from __future__ import annotations

import dataclasses

import numpy as np

from gm.checkpoints.lazy_tensor import LazyTensor
from gm.errors import UserError

_CHUNK = 1 << 18  # values that stay in the processor's cache while they are looked at
_FLOAT16_EXPONENT = 0x7C00  # all bits set: infinite or NaN
_VAE_PREFIX = "first_stage_model."


def check_type(tensor: LazyTensor, key: str, source: str) -> None:
    """Raise UserError if `tensor` of the file `source` holds integers: they mean nothing without their scales."""
    if not tensor.dtype.startswith(("float", "bfloat")):
        raise UserError(
            f"{source}: {key} holds {tensor.dtype} values, as quantized models do, which cannot be read; "
            "use the float16, float32 or float8 file of the model"
        )


def is_finite(values: np.ndarray) -> bool:
    """Return whether no value is infinite or NaN."""
    flat = values.ravel(order="K")
    parts = (flat[start : start + _CHUNK] for start in range(0, flat.size, _CHUNK))
    if values.dtype == np.float16:  # NumPy's own check of float16 takes seven times as long
        return all((part.view(np.uint16) & 0x7FFF).max() < _FLOAT16_EXPONENT for part in parts)
    return all(np.isfinite(part).all() for part in parts)


def check_finite(values: np.ndarray, key: str, source: str) -> None:
    """Raise UserError if a value of the tensor `key` of the file `source` is infinite or NaN."""
    if is_finite(values):
        return
    nan, infinite = np.isnan(values).sum(), np.isinf(values).sum()
    counts = " and ".join(f"{count} {name}" for count, name in ((nan, "NaN"), (infinite, "infinite")) if count)
    if key.startswith(_VAE_PREFIX):
        remedy = "give another VAE with --vae, such as sdxl_vae.safetensors"
    else:
        remedy = "a merge or a conversion has spoiled it, so take the model from another file"
    raise UserError(f"{source}: {key} holds {counts} of {values.size} values; {remedy}")


def checked(tensor: LazyTensor, key: str, source: str) -> LazyTensor:
    """Return `tensor`, whose reading raises UserError as `check_finite` does."""

    def read() -> np.ndarray:
        values = tensor.read()
        check_finite(values, key, source)
        return values

    return dataclasses.replace(tensor, read=read)
