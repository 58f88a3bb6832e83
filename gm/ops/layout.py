"""Memory layout of token sequences: channels first on the CPU, tokens first on Ascend.

On the CPU a sequence is [C, N, L]. A product of weights [outputs, C] with it does not repack the weights, which for
some tens of tokens takes as long as the product itself, and neither images nor attention heads need a transpose. On
Ascend it is [N, L, C], the layout of its attention kernel and its normalisation. Networks treat a sequence as opaque:
they create and read it by these functions only.
"""

from __future__ import annotations

import mindspore as ms
from mindspore import Tensor, nn, ops

from gm.ops import fused
from gm.ops.shared_cell import shared_cell
from gm.runtime import backend


def from_tokens(x: Tensor) -> Tensor:
    """Convert tokens x [N, L, C] to a sequence."""
    return x if backend.on_ascend() else x.transpose((2, 0, 1))


def to_tokens(x: Tensor) -> Tensor:
    """Convert a sequence to tokens [N, L, C]."""
    return x if backend.on_ascend() else x.transpose((1, 2, 0))


def swap_leading_axes() -> nn.Cell:
    """Return the Cell x [A, B, L] → x [B, A, L], which networks on the CPU give to the functions below."""
    return shared_cell(_SwapLeadingAxes, fused.swap_leading_axes())


def from_image(x: Tensor, swap: nn.Cell) -> Tensor:
    """Convert the pixels of x [N, C, H, W] to a sequence of H·W tokens."""
    n, channels = x.shape[:2]
    x = x.reshape((n, channels, -1))
    return x.transpose((0, 2, 1)) if backend.on_ascend() else swap(x)


def to_image(x: Tensor, swap: nn.Cell, height: int, width: int) -> Tensor:
    """Convert a sequence of H·W tokens to an image [N, C, H, W]."""
    x = x.transpose((0, 2, 1)) if backend.on_ascend() else swap(x)
    return x.reshape((x.shape[0], x.shape[1], height, width))


def split_channels(x: Tensor, parts: int) -> tuple[Tensor, ...]:
    """Split the sequence x into `parts` sequences with equal numbers of channels."""
    axis = -1 if backend.on_ascend() else 0
    return ops.split(x, x.shape[axis] // parts, axis=axis)


def scale_channels(x: Tensor, scale: Tensor) -> Tensor:
    """Multiply every channel of the sequence x by its number in `scale` [C]."""
    return x * (scale if backend.on_ascend() else scale.reshape((-1, 1, 1)))


class _SwapLeadingAxes(nn.Cell):
    """An operator, or slices in another order: not a transpose, for which the CPU stores 8 bytes per element."""

    def __init__(self, operator: nn.Cell | None) -> None:
        super().__init__()
        self.operator = operator

    def construct(self, x: Tensor) -> Tensor:
        a, b, length = x.shape
        if a == 1 or b == 1:
            return x.reshape((b, a, length))
        if self.operator is not None and x.dtype == ms.float32:
            return self.operator(x)
        if a < b:
            return ops.concat([part.reshape((b, 1, length)) for part in ops.split(x, 1, axis=0)], axis=1)
        return ops.concat([part.reshape((1, a, length)) for part in ops.split(x, 1, axis=1)], axis=0)
