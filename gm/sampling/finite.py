"""Checks that latents and images are finite: NaN would become a black image without an error."""

from __future__ import annotations

from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Tensor

from gm.errors import UserError
from gm.runtime.backend import Backend, DType


def check_latents(latents: Tensor, names: Sequence[str], step: int, steps: int, backend: Backend) -> None:
    """Raise UserError if the `latents` [N, z, h, w] of an image are not finite after `step` of `steps`.

    This waits for the step on the device; the values are few.
    """
    k = first_not_finite(latents.asnumpy()[: len(names)])
    if k is not None:
        raise UserError(f"{names[k]} is not finite after step {step} of {steps}: {_remedy(backend.dtype)}")


def check_decoded(levels: np.ndarray, name: str) -> None:
    """Raise UserError if the `levels` of an image that the VAE has decoded are not finite."""
    if not np.isfinite(levels).all():
        raise UserError(
            f"{name} is not finite after the VAE, though its latents are: give another VAE with --vae, such as the "
            "fp16 fix"
        )


def first_not_finite(values: np.ndarray) -> int | None:
    """Return the index of the first of `values` [N, …] that holds an infinite value or NaN; None if there is none."""
    finite = np.isfinite(values.reshape(len(values), -1)).all(axis=1)
    return None if finite.all() else int(np.argmin(finite))


def _remedy(dtype: DType) -> str:
    if dtype == ms.float16:
        return "float16 overflows with these weights; give --precision float32 or bfloat16"
    return (
        "the weights are finite, so values grew beyond all limits; lower --guidance_scale, the weights in the prompt "
        "and --s_noise, or take another --sampler"
    )
