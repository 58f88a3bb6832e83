"""Stand-ins for Ascend's kernels, which the CPU lacks: each computes what MindSpore's documentation says of it.

They work in PyNative mode, and hold the callers to the documented arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mindspore as ms
import numpy as np
import torch
from mindspore import Tensor, mint, ops

HALF = (ms.float16, ms.bfloat16)


class StandIns:
    """Replaces the kernels by the stand-ins; `calls` are their names in the order of use."""

    def __init__(self, replace: Callable[[object, str, object], None]) -> None:
        self.calls: list[str] = []
        for module, name in (
            (ops, "flash_attention_score"),
            (mint.nn.functional, "gelu"),
            (mint.nn.functional, "layer_norm"),
            (mint.nn.functional, "conv2d"),
        ):
            replace(module, name, self._counted(name, globals()[name]))

    def _counted(self, name: str, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*arguments: Any, **options: Any) -> Tensor:
            self.calls.append(name)
            return function(*arguments, **options)

        return call


def flash_attention_score(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    head_num: int,
    attn_mask: Tensor | None,
    scalar_value: float,
    input_layout: str,
) -> Tensor:
    """BSH layout: [N, L, heads · d]. The mask marks scores to discard, and the scale is explicit."""
    assert input_layout == "BSH"
    assert {query.dtype, key.dtype, value.dtype} in ({dtype} for dtype in HALF)
    n, length, channels = query.shape
    assert channels % head_num == 0
    assert channels // head_num % 16 == 0
    assert channels // head_num <= 512
    q, k, v = (
        x.asnumpy().astype(np.float64).reshape(n, -1, head_num, channels // head_num).swapaxes(1, 2)
        for x in (query, key, value)
    )
    scores = q @ k.swapaxes(-1, -2) * scalar_value
    if attn_mask is not None:
        assert attn_mask.dtype in (ms.uint8, ms.bool_)
        scores = np.where(attn_mask.asnumpy().astype(bool), -np.inf, scores)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    out = (weights / weights.sum(-1, keepdims=True) @ v).swapaxes(1, 2).reshape(n, length, channels)
    return Tensor(out.astype(np.float32), query.dtype)


def gelu(input: Tensor, *, approximate: str = "none") -> Tensor:
    """GELU, exact by default."""
    return _tensor(torch.nn.functional.gelu(_double(input), approximate=approximate), input.dtype)


def layer_norm(input: Tensor, normalized_shape: tuple[int, ...], weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Normalise over the last axes. Weight and bias have one dtype: that of the input, or float32."""
    assert weight.dtype == bias.dtype
    assert weight.dtype in (input.dtype, ms.float32)
    out = torch.nn.functional.layer_norm(_double(input), normalized_shape, _double(weight), _double(bias), eps)
    return _tensor(out, input.dtype)


def conv2d(input: Tensor, weight: Tensor, bias: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
    """Convolve as PyTorch does."""
    assert input.dtype == weight.dtype == bias.dtype
    out = torch.nn.functional.conv2d(_double(input), _double(weight), _double(bias), stride, padding)
    return _tensor(out, input.dtype)


def convolution_grad(
    dout: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    transposed: bool,
    output_padding: tuple[int, int],
    groups: int,
    output_mask: tuple[int, int, int],
) -> tuple[Tensor | None, ...]:
    """Return the gradients of input, weight and bias that the mask asks for, as PyTorch's operator of this order."""
    gradients = torch.ops.aten.convolution_backward(
        *map(_double, (dout, input, weight)),
        list(bias.shape),
        *(stride, padding, dilation, transposed, output_padding, groups),
        [bool(wanted) for wanted in output_mask],
    )
    return tuple(None if each is None else _tensor(each, input.dtype) for each in gradients)


def _double(x: Tensor) -> torch.Tensor:
    return torch.from_numpy(x.astype(ms.float32).asnumpy().astype(np.float64))


def _tensor(x: torch.Tensor, dtype: Any) -> Tensor:
    return Tensor(x.numpy().astype(np.float32), dtype)
