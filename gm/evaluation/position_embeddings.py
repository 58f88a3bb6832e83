"""Position embeddings of a vision transformer for another number of patches than it was trained with.

DINOv2 was published for 37 × 37 patches; an image of 224 pixels has 16 × 16. As in its own code and in
transformers', the embeddings are interpolated by cubic convolution (Keys, 1981, "Cubic convolution interpolation for
digital image processing") with a = -0.75, PyTorch's constant, half-pixel centers and repeated borders.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from gm.checkpoints.lazy_tensor import LazyTensor

_A = -0.75


def resized(table: LazyTensor, grid: int) -> LazyTensor:
    """Return the embeddings [..., 1 + old², width] for `grid` × `grid` patches; the class token's stays.

    A table that is for that many patches, or for patches that are not a square, is returned as it is.
    """
    if len(table.shape) < 2:
        return table
    count, width = table.shape[-2:]
    old = math.isqrt(max(count - 1, 0))
    if old == grid or old < 1 or old**2 + 1 != count:
        return table
    shape = (*table.shape[:-2], grid**2 + 1, width)

    def read() -> np.ndarray:
        values = table.read().astype(np.float64).reshape(count, width)
        weights = interpolation_weights(old, grid)
        patches = values[1:].reshape(old, old, width)
        patches = np.einsum("io,jp,opc->ijc", weights, weights, patches, optimize=True)
        both = np.concatenate([values[:1], patches.reshape(-1, width)])
        return both.reshape(shape).astype(np.float32)

    return dataclasses.replace(table, shape=shape, dtype="float32", read=read)


def interpolation_weights(old: int, new: int) -> np.ndarray:
    """Return the matrix [new, old] that interpolates `old` values along an axis to `new` ones."""
    weights = np.zeros((new, old))
    for row in range(new):
        center = (row + 0.5) * old / new - 0.5
        first = math.floor(center) - 1
        for index in range(first, first + 4):
            weights[row, min(max(index, 0), old - 1)] += _kernel(abs(center - index))
    return weights


def _kernel(x: float) -> float:
    if x <= 1:
        return ((_A + 2) * x - (_A + 3)) * x * x + 1
    return ((_A * x - 5 * _A) * x + 8 * _A) * x - 4 * _A if x < 2 else 0.0
