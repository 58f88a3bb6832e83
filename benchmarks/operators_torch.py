"""A worker that times chained operators of PyTorch: python -m benchmarks.operators_torch SHAPES."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks import cases, operators
from benchmarks.operators import EPSILON, LINKS, Shape
from benchmarks.workers import Work, serve

Link = Callable[[Tensor, Tensor], Tensor]


def link(shape: Shape) -> Link:
    """Return one operator as a function of x and a context."""
    width = shape.width
    weight, gamma, beta = torch.randn(width, width) / width**0.5, torch.ones(width), torch.zeros(width)
    kernel = torch.randn(width, width, 3, 3) / (9 * width) ** 0.5 if shape.operator == "convolution" else weight

    def attend(x: Tensor, context: Tensor) -> Tensor:
        other = context if shape.keys else x
        q, k, v = (each.unflatten(2, (shape.heads, -1)).transpose(1, 2) for each in (x, other, other))
        result = functional.scaled_dot_product_attention(q, k, v, is_causal=shape.causal)
        return result.transpose(1, 2).flatten(2)

    links: dict[str, Link] = {
        "layer_norm": lambda x, _: functional.layer_norm(x, (width,), gamma, beta, EPSILON),
        "group_norm": lambda x, _: functional.group_norm(x, shape.groups, gamma, beta, EPSILON),
        "softmax": lambda x, _: functional.softmax(x, -1) * float(width),
        "gelu": lambda x, _: functional.gelu(x),
        "convolution": lambda x, _: functional.conv2d(x, kernel, beta, padding=1),
        "project": lambda x, _: functional.linear(x, weight, beta),
        "attention": attend,
    }
    return links[shape.operator]


def inputs(shape: Shape) -> tuple[Tensor, Tensor]:
    """Return x and the context in the operator's layout."""
    context = torch.randn(1, max(1, shape.keys), shape.width)
    if shape.operator == "softmax":
        return torch.randn(shape.heads, shape.tokens, shape.width), context
    if shape.operator in ("group_norm", "convolution"):
        return torch.randn(1, shape.width, shape.height, shape.tokens // shape.height), context
    return torch.randn(1, shape.tokens, shape.width), context


def set_up(shapes: list[Shape]) -> tuple[dict[str, Any], Work]:
    """Return a worker that runs every chain once per piece, forward, and forward and backward."""
    torch.set_num_threads(os.cpu_count() or 1)
    chains = {str(shape): (link(shape), inputs(shape)) for shape in shapes}
    return {}, lambda: {"chains": {name: [_timed(f, x, False), _timed(f, x, True)] for name, (f, x) in chains.items()}}


def _timed(step: Link, x: tuple[Tensor, Tensor], backward: bool) -> float:
    leaves = [each.detach().requires_grad_(backward) for each in x]
    started = time.perf_counter()
    y = leaves[0]
    for _ in range(LINKS):
        y = step(y, leaves[1])
    loss = y.square().mean()
    if backward:
        loss.backward()
    loss.item()
    return time.perf_counter() - started


def main() -> None:
    cases.lift_onednn_limit()
    serve(lambda: set_up(operators.from_json(sys.argv[1])))


if __name__ == "__main__":
    main()
