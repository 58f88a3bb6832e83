"""Sequences of tokens, laid out as the backend multiplies them fastest.

On the CPU channels come first, [C, N, L]: a product of weights [outputs, C] with it needs no repacking of the weights,
which for some tens of tokens takes as long as the product, and neither images nor attention heads need a transpose.
On Ascend tokens come first, [N, L, C], as its attention kernel and normalisation want them. Networks hold what these
functions return without looking inside.
"""

from __future__ import annotations

from mindspore import Tensor, ops

from gm.runtime import backend


def from_tokens(x: Tensor) -> Tensor:
    """Return the sequence of tokens x [N, L, C]."""
    return x if backend.on_ascend() else x.transpose((2, 0, 1))


def to_tokens(x: Tensor) -> Tensor:
    """Return the tokens [N, L, C] of a sequence."""
    return x if backend.on_ascend() else x.transpose((1, 2, 0))


def from_image(x: Tensor) -> Tensor:
    """Return the pixels of x [N, C, H, W] as a sequence of H·W tokens."""
    n, channels = x.shape[:2]
    x = x.reshape((n, channels, -1))
    return x.transpose((0, 2, 1)) if backend.on_ascend() else swap_leading_axes(x)


def to_image(x: Tensor, height: int, width: int) -> Tensor:
    """Return a sequence of H·W tokens as an image [N, C, H, W]."""
    x = x.transpose((0, 2, 1)) if backend.on_ascend() else swap_leading_axes(x)
    return x.reshape((x.shape[0], x.shape[1], height, width))


def split_channels(x: Tensor, parts: int) -> tuple[Tensor, ...]:
    """Return the channels of the sequence x in `parts` sequences of as many channels each."""
    axis = -1 if backend.on_ascend() else 0
    return ops.split(x, x.shape[axis] // parts, axis=axis)


def swap_leading_axes(x: Tensor) -> Tensor:
    """Return x [A, B, L] as [B, A, L]; one of A and B is small."""
    a, b, length = x.shape
    if a == 1 or b == 1:
        return x.reshape((b, a, length))
    # Not a transpose, of which the CPU backend keeps an index.
    if a < b:
        return ops.concat([part.reshape((b, 1, length)) for part in ops.split(x, 1, axis=0)], axis=1)
    return ops.concat([part.reshape((1, a, length)) for part in ops.split(x, 1, axis=1)], axis=0)
