"""Kernels of Ascend that the networks use there; `gm.ops` chooses between them and the operators composed for the CPU.

They are operators that CANN ships as prebuilt binaries ("aclnn"): the older `ops.Conv2D`, `ops.LayerNorm` and
`ops.BiasAdd` are compiled for each shape at first use, and the older GELU is five kernels. Half-precision input needs
no casts: the kernels compute in float32 (CANN's `ops-nn`: `norm/layer_norm_v4`, `norm/group_norm_silu`). None of this
has run on a card; `tools/ascend_dryrun` compiles it.
"""

from __future__ import annotations

import math

import mindspore as ms
from mindspore import Tensor, mint, nn, ops
from mindspore.ops.auto_generate import ConvolutionGrad

from gm.runtime.backend import DType

_HEAD_WIDTH_STEP = 16
_MAX_HEAD_WIDTH = 512


def group_norm_weight_dtype(dtype: DType) -> DType:
    """Return the dtype of gamma and beta of a `GroupNorm` in a network of `dtype`, in which no cast is needed."""
    # Not bfloat16, whose 8 bits would change the weights, and with them the fingerprint of the model.
    return ms.float16 if dtype == ms.float16 else ms.float32


def takes_heads(width: int) -> bool:
    """Return whether the flash attention kernel takes heads of `width` channels (documentation of the operator)."""
    return width % _HEAD_WIDTH_STEP == 0 and width <= _MAX_HEAD_WIDTH


def head_width(width: int) -> int:
    """Return the least width from `width` on that the kernel takes; `width` itself if there is none."""
    padded = _HEAD_WIDTH_STEP * math.ceil(width / _HEAD_WIDTH_STEP)
    return padded if takes_heads(padded) else width


def can_attend(width: int, dtype: DType) -> bool:
    """Return whether the flash attention kernel takes heads of `width` channels in `dtype`."""
    return dtype != ms.float32 and takes_heads(width)


def flash_attention(query: Tensor, key: Tensor, value: Tensor, heads: int, causal: bool, scale: float) -> Tensor:
    """Return softmax(scale · QKᵀ)V by the fused kernel (Dao et al., 2022).

    query [N, L, heads · d], key and value [N, S, heads · d], in half precision → [N, L, heads · d].
    """
    length = query.shape[1]
    # The kernel's mask marks the scores to discard.
    mask = ops.triu(ops.ones((length, length), ms.uint8), diagonal=1) if causal else None
    return ops.flash_attention_score(query, key, value, heads, attn_mask=mask, scalar_value=scale, input_layout="BSH")


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return x Wᵀ + b of x [N, C] by one kernel: for two axes it is `aclnnAddmm`, which reads the weight transposed."""
    return mint.nn.functional.linear(x, weight, bias)


class Gelu(nn.Cell):
    """Exact GELU."""

    def construct(self, x: Tensor) -> Tensor:
        return mint.nn.functional.gelu(x)


class LayerNorm(nn.Cell):
    """Layer normalisation of x [N, L, width] in any precision, with float32 gamma and beta.

    The kernel takes float32 weights with half-precision input (CANN's documentation of `aclnnLayerNorm` and
    `aclnnLayerNormBackward`).
    """

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.width = width
        self.epsilon = epsilon

    def construct(self, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        return mint.nn.functional.layer_norm(x, (self.width,), gamma, beta, self.epsilon)


class GroupNorm(nn.Cell):
    """Group normalisation of x [N, C, H, W] in any precision.

    The kernel takes gamma and beta in the precision of x only (CANN's documentation of `aclnnGroupNorm`). It computes
    in float32, but hands mean and 1/s to the backward pass in the precision of x, as PyTorch does.
    """

    def __init__(self, groups: int, epsilon: float) -> None:
        super().__init__()
        self.groups = groups
        self.epsilon = epsilon

    def construct(self, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        return ops.group_norm(x, self.groups, ops.cast(gamma, x.dtype), ops.cast(beta, x.dtype), self.epsilon)


class Convolution(nn.Cell):
    """Convolution of x [N, C, H, W] with a frozen weight [outputs, C, k, k] and bias [outputs]; see `bprop`."""

    def __init__(self, padding: int, stride: int) -> None:
        super().__init__()
        self.padding = (padding, padding)
        self.stride = (stride, stride)
        self.convolution_grad = ConvolutionGrad()

    def construct(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return mint.nn.functional.conv2d(x, weight, bias, self.stride, self.padding)

    def bprop(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, dout: Tensor
    ) -> tuple[Tensor, None, None]:
        # Derived by MindSpore, a graph's backward pass computes the gradients of weight and bias, too, although nothing
        # uses them: twice the arithmetic. The last argument says which of the three are wanted.
        dx = self.convolution_grad(
            dout, x, weight, bias, self.stride, self.padding, (1, 1), False, (0, 0), 1, (1, 0, 0)
        )[0]
        return dx, None, None
