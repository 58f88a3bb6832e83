"""Operators of the networks, implemented as the device computes them fastest; each equals a native operator.

MindSpore's CPU backend is fast at matrix products, convolutions and bias additions. It is slow at normalisations, sums
along an axis, broadcasts and transposes, and for the last two it stores an index of 8 bytes per element for the
backward pass. So on the CPU the slow operators are operators of our own (`gm.ops.fused`), or, without a C++ compiler,
composed of fast ones; on Ascend the kernels of `gm.ops.ascend` are used, and nothing is transposed. The functions here
choose by `backend.on_ascend()` and `onednn.library()` when a network is constructed. Composed normalisations choose
again when they run: in PyNative mode one slow native operator takes less time than the launch of twenty fast ones.
"""

from gm.ops.attention import attention, head_width
from gm.ops.bfloat16 import activation_dtype, vector_product
from gm.ops.gelu import geglu, gelu
from gm.ops.linear import (
    add_bias,
    convolution,
    linear,
    pointwise_convolution,
    projection,
    projection_from_image,
    projection_to_image,
)
from gm.ops.norm import group_norm, group_norm_weight_dtype, layer_norm, softmax

__all__ = [
    "activation_dtype",
    "add_bias",
    "attention",
    "convolution",
    "geglu",
    "gelu",
    "group_norm",
    "group_norm_weight_dtype",
    "head_width",
    "layer_norm",
    "linear",
    "pointwise_convolution",
    "projection",
    "projection_from_image",
    "projection_to_image",
    "softmax",
    "vector_product",
]
