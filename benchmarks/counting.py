"""What SDXL's networks compute, hold and keep, counted from the config alone.

Counted are convolutions, projections and the two products of attention; a multiplication and an addition are two
FLOPs. Normalisations, activations, sums and sinusoids have no FLOPs here, below one in a hundred of the whole; they
count in what is kept for the backward pass. Weights are frozen, so a projection or a convolution keeps nothing and
costs in the backward pass what it costs forward: the gradient of its input. The products of attention cost twice
that, since both factors depend on the learned rows. What does not depend on them has no way back at all (`aside`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

_FLASH_STATISTICS = 16  # float32 values that Ascend's flash kernel keeps for every query of a head: 8 maxima, 8 sums


@dataclass(frozen=True)
class Part:
    """One operator. Everything is a number of values, but `flops`."""

    flops: int = 0  # forward
    back: int = 0  # FLOPs of the way back
    weights: int = 0
    weights_float32: int = 0  # of normalisations, in any precision
    moved: int = 0  # in and out of a product, forward, beside its weights
    kept: int = 0  # for the backward pass, in the precision of the weights
    kept_float32: int = 0
    kept_if_half: int = 0  # copies in half precision of what is kept in float32


@dataclass(frozen=True)
class Block:
    """Parts that recomputation would run again together, keeping their `inputs` values only; 0 keeps everything."""

    name: str
    inputs: int
    parts: tuple[Part, ...]

    @property
    def flops(self) -> int:
        return sum(part.flops for part in self.parts)

    @property
    def back(self) -> int:
        return sum(part.back for part in self.parts)


def convolution(inputs: int, outputs: int, kernel: int, pixels: int, pixels_in: int | None = None) -> Part:
    """Count a convolution that makes `pixels` (of the whole batch) from as many, or from `pixels_in`."""
    size = kernel * kernel * inputs * outputs
    moved = inputs * (pixels if pixels_in is None else pixels_in) + outputs * pixels
    return Part(2 * size * pixels, 2 * size * pixels, weights=size + outputs, moved=moved)


def projection(inputs: int, outputs: int, tokens: int, bias: bool = True) -> Part:
    """Count a matrix times every one of `tokens` (of the whole batch)."""
    flops = 2 * inputs * outputs * tokens
    return Part(flops, flops, weights=inputs * outputs + bias * outputs, moved=(inputs + outputs) * tokens)


def attention(width: int, heads: int, queries: int, keys: int, batch: int, flash: bool) -> Part:
    """Count softmax(QKᵀ/√d)V of `queries` and `keys` tokens an image, with all scores, also those a mask hides."""
    flops = 2 * 2 * width * queries * keys * batch
    inputs, output = (queries + 2 * keys) * width * batch, queries * width * batch
    if flash:  # its way back computes the scores once more: five products instead of four
        statistics = _FLASH_STATISTICS * heads * queries * batch
        return Part(flops, flops * 5 // 2, moved=inputs + output, kept=inputs + output, kept_float32=statistics)
    scores = heads * queries * keys * batch
    moved = inputs + output + 2 * scores
    return Part(flops, 2 * flops, moved=moved, kept=inputs, kept_float32=scores, kept_if_half=scores)


def norm(channels: int, positions: int) -> Part:
    """Count a normalisation, which keeps its input in float32."""
    return Part(weights_float32=2 * channels, kept_float32=channels * positions)


def activation(values: int, copies: int = 1) -> Part:
    """Count an activation, which keeps `copies` of as many values as it makes."""
    return Part(kept=copies * values)


def table(rows: int, width: int) -> Part:
    """Count an embedding."""
    return Part(weights=rows * width)


def aside(parts: Iterable[Part]) -> tuple[Part, ...]:
    """Return `parts` that do not depend on the learned rows: no way back, nothing kept."""
    nothing = {"back": 0, "kept": 0, "kept_float32": 0, "kept_if_half": 0}
    return tuple(dataclasses.replace(part, **nothing) for part in parts)


def unused(parts: Iterable[Part]) -> tuple[Part, ...]:
    """Return `parts` that are loaded and never computed."""
    return tuple(Part(weights=p.weights, weights_float32=p.weights_float32) for p in parts)
