"""Projections to and from attention heads, whose weights are padded where Ascend's kernel needs wider heads.

Its flash attention takes heads whose width is a multiple of 16. Those of Stable Diffusion 1's first level have 40
channels: there the weights get rows and columns of zeros when they are loaded, so that heads have 48. Zeros in query
and key add nothing to their product, and the zero channels of the result meet the zero columns of the next projection.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from mindspore import Parameter, nn

from gm import ops as gm_ops
from gm.models.layers import Projection
from gm.runtime.backend import DType


@dataclass(frozen=True)
class Heads:
    """`count` attention heads of `width` channels, which have `padded` channels in the network."""

    count: int
    width: int
    padded: int

    @property
    def channels(self) -> int:
        """Channels of all heads in the network."""
        return self.count * self.padded


@dataclass(frozen=True)
class _Padding:
    """The padding of a parameter, whose `axis` has the channels of `heads`."""

    axis: int
    heads: Heads


def split(channels: int, count: int, dtype: DType) -> Heads:
    """Return the heads of an attention over `channels`, in a network with weights of `dtype`."""
    width = channels // count
    return Heads(count, width, gm_ops.head_width(width, dtype))


def attention(heads: Heads, dtype: DType, causal: bool = False, upcast: bool = False) -> nn.Cell:
    """Return `gm.ops.attention` between projections to `heads`, with weights of `dtype`."""
    return gm_ops.attention(heads.count, causal, upcast, heads.width, dtype)


def to_heads(inputs: int, heads: Heads, dtype: DType, bias: bool = True) -> Projection:
    """Return the projection of `inputs` channels to the queries, keys or values of `heads`."""
    projection = Projection(inputs, heads.channels, dtype, bias)
    pad(projection.weight, heads, axis=0)
    if projection.bias is not None:
        pad(projection.bias, heads, axis=0)
    return projection


def from_heads(heads: Heads, outputs: int, dtype: DType) -> Projection:
    """Return the projection of the attention's result to `outputs` channels."""
    projection = Projection(heads.channels, outputs, dtype)
    pad(projection.weight, heads, axis=1)
    return projection


def pad(parameter: Parameter, heads: Heads, axis: int, projections: int = 1) -> None:
    """Mark a parameter whose `axis` has the channels of `heads`, once for each of `projections`."""
    if heads.padded != heads.width:
        parameter.head_padding = _Padding(axis, replace(heads, count=projections * heads.count))


def published_shape(parameter: Parameter) -> tuple[int, ...]:
    """Return the shape of a parameter in the published files."""
    padding: _Padding | None = getattr(parameter, "head_padding", None)
    shape = list(parameter.shape)
    if padding:
        shape[padding.axis] = padding.heads.count * padding.heads.width
    return tuple(shape)


def padded(parameter: Parameter, values: np.ndarray) -> np.ndarray:
    """Return the `values` of a parameter, of its published shape, as the network has them."""
    padding: _Padding | None = getattr(parameter, "head_padding", None)
    if padding is None:
        return values
    heads = padding.heads
    before, after = values.shape[: padding.axis], values.shape[padding.axis + 1 :]
    result = np.zeros((*before, heads.count, heads.padded, *after), values.dtype)
    channels = (slice(None),) * (padding.axis + 1) + (slice(heads.width),)
    result[channels] = values.reshape((*before, heads.count, heads.width, *after))
    return result.reshape(parameter.shape)
