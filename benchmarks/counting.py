"""FLOPs, weights and saved activations of the operators of the networks, from the config alone.

Counted are convolutions, projections and the two products of attention; a multiplication and an addition are two
FLOPs. Normalisations, activations, sums and sinusoids have no FLOPs here, below one in a hundred of the whole; they
count in the activations saved for the backward pass. Weights are frozen, so a projection or a convolution saves nothing
and costs as much backward as forward: the gradient of its input. The products of attention cost twice that, since both
factors depend on the embedding vectors. What does not depend on them has no backward pass (`without_gradient`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

_FLASH_STATISTICS = 16  # float32 values that Ascend's flash kernel saves for every query of a head: 8 maxima, 8 sums


@dataclass(frozen=True)
class Part:
    """One operator. All fields but the FLOPs are numbers of values."""

    flops: int = 0  # forward
    backward: int = 0  # FLOPs of the backward pass
    weights: int = 0
    weights_float32: int = 0  # of normalisations, in any precision
    moved: int = 0  # in and out of a product, forward, beside its weights
    saved: int = 0  # for the backward pass, in the precision of the weights
    saved_float32: int = 0
    saved_if_half: int = 0  # copies in half precision of tensors saved in float32


@dataclass(frozen=True)
class Block:
    """Parts that are recomputed together, with only `inputs` values saved; 0 means that nothing is recomputed."""

    name: str
    inputs: int
    parts: tuple[Part, ...]

    @property
    def flops(self) -> int:
        return sum(part.flops for part in self.parts)

    @property
    def backward(self) -> int:
        return sum(part.backward for part in self.parts)


def convolution(inputs: int, outputs: int, kernel: int, pixels: int, pixels_in: int | None = None) -> Part:
    """Count a convolution that makes `pixels` (of the whole batch) from as many, or from `pixels_in`."""
    size = kernel * kernel * inputs * outputs
    moved = inputs * (pixels if pixels_in is None else pixels_in) + outputs * pixels
    return Part(2 * size * pixels, 2 * size * pixels, weights=size + outputs, moved=moved)


def projection(inputs: int, outputs: int, tokens: int, bias: bool = True) -> Part:
    """Count a matrix times every one of `tokens` (of the whole batch)."""
    flops = 2 * inputs * outputs * tokens
    return Part(flops, flops, weights=inputs * outputs + bias * outputs, moved=(inputs + outputs) * tokens)


def attention(
    width: int, heads: int, queries: int, keys: int, batch: int, flash: bool, query_gradient: bool = True
) -> Part:
    """Count softmax(QKᵀ/√d)V of `queries` and `keys` tokens an image, with all scores, also those a mask hides.

    The gradient of Q is one of the four products of the backward pass; the flash kernel always computes it.
    """
    flops = 2 * 2 * width * queries * keys * batch
    inputs, output = (queries + 2 * keys) * width * batch, queries * width * batch
    if flash:  # the backward pass computes the scores again: five products instead of four
        statistics = _FLASH_STATISTICS * heads * queries * batch
        return Part(flops, flops * 5 // 2, moved=inputs + output, saved=inputs + output, saved_float32=statistics)
    scores = heads * queries * keys * batch
    moved = inputs + output + 2 * scores
    backward = flops * (4 if query_gradient else 3) // 2
    return Part(flops, backward, moved=moved, saved=inputs, saved_float32=scores, saved_if_half=scores)


def norm(channels: int, positions: int) -> Part:
    """Count a normalisation, which saves its input in float32."""
    return Part(weights_float32=2 * channels, saved_float32=channels * positions)


def activation(values: int, copies: int = 1) -> Part:
    """Count an activation function, which saves `copies` of its output's size."""
    return Part(saved=copies * values)


def table(entries: int, width: int) -> Part:
    """Count an embedding."""
    return Part(weights=entries * width)


def without_gradient(parts: Iterable[Part]) -> tuple[Part, ...]:
    """Return `parts` that do not depend on the embedding vectors: no backward pass, nothing saved."""
    nothing = {"backward": 0, "saved": 0, "saved_float32": 0, "saved_if_half": 0}
    return tuple(dataclasses.replace(part, **nothing) for part in parts)


def unused(parts: Iterable[Part]) -> tuple[Part, ...]:
    """Return `parts` that are loaded but never computed."""
    return tuple(Part(weights=p.weights, weights_float32=p.weights_float32) for p in parts)
