"""Workers that time products of one input: python -m benchmarks.joined apart|joined SIZE PIXELS."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from benchmarks.models import SIZES
from benchmarks.worker import Work, serve
from gm import ops as gm_ops
from gm.config import RunConfig
from gm.config.model import ModelConfig
from gm.runtime import backend, rng

SIDES = ("apart", "joined")
WAYS = ("forward", "forward and back")


@dataclass(frozen=True)
class Group:
    """`count` products to `outputs` channels each of one input, `tokens` of `width` channels.

    They occur `times` times in the network, every time with weights of their own and an input of their own.
    """

    name: str
    width: int
    tokens: int
    outputs: int
    count: int
    times: int = 1

    def __str__(self) -> str:
        return f"{self.name} to {self.outputs}: {self.times} × {self.count}"


def groups(config: ModelConfig, pixels: int) -> list[Group]:
    """Return the groups of one UNet for an image of `pixels` a side."""
    unet, tokens = config.unet, config.text_encoder_1.positions
    alike: list[Group] = []
    text: list[Group] = []
    time_: list[Group] = []
    side, last = pixels // config.vae.downsample_factor, len(unet.channel_mult) - 1
    for level, (mult, depth) in enumerate(zip(unet.channel_mult, unet.transformer_depth, strict=True)):
        width = mult * unet.model_channels
        blocks = 2 * unet.num_res_blocks + 1  # down and up
        layers = blocks * depth + (unet.middle_depth if level == last else 0)
        if layers:
            alike.append(Group(f"q, k, v of {side * side} tokens", width, side * side, width, 3, layers))
            text.append(Group("keys and values of the text", unet.context_dim, tokens, width, 2 * layers))
        time_.append(Group("time vectors", 4 * unet.model_channels, 1, width, blocks + (2 if level == last else 0)))
        side = -(-side // 2)
    return alike + text + time_


class Products(nn.Cell):
    """The mean square of everything that one group makes of x, a sequence."""

    def __init__(self, group: Group, join: bool) -> None:
        super().__init__(auto_prefix=False)
        self.outputs, self.join, self.products = group.outputs, join, 1 if join else group.count
        self.project = gm_ops.projection()
        scale = 1.0 / math.sqrt(3 * group.width)  # the sum of three is as large as x
        weights: list[Parameter] = []
        for _ in range(group.times):
            for _ in range(self.products):
                shape = (group.outputs * group.count // self.products, group.width)
                values = rng.normal(shape, len(weights), "weight")
                weights.append(Parameter(Tensor(values * np.float32(scale)), f"w{len(weights)}", requires_grad=False))
        self.weights = ms.ParameterTuple(weights)
        self.times, self.last = group.times, group.times - 1

    def construct(self, x: Tensor) -> Tensor:
        total, place = 0.0, 0
        for time_ in range(self.times):
            made: tuple[Tensor, ...] = ()
            for _ in range(self.products):
                made = (*made, self.project(x, self.weights[place], None))
                place += 1
            if self.join:
                made = ops.split(made[0], self.outputs, axis=0)
            if time_ == self.last:
                for part in made:
                    total = total + (part * part).mean()
            else:
                x = made[0] + made[1] + made[2]  # the next input, as attention would make one of all three
        return total


class _Both(nn.Cell):
    def __init__(self, products: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.products = products

    def construct(self, x: Tensor) -> Any:
        return ms.value_and_grad(self.products, grad_position=0)(x)


def set_up(join: bool, wanted: list[Group]) -> tuple[dict[str, Any], Work]:
    """Return a worker that does every group's products once a piece, forward, and forward and back."""
    backend.setup(RunConfig(device_target="CPU"))
    runs = {}
    for group in wanted:
        products = Products(group, join)
        x = Tensor(rng.normal((group.width, 1, group.tokens), 0, "x"))
        runs[str(group)] = (backend.compile_cell(products, True), backend.compile_cell(_Both(products), True), x)

    def work() -> dict[str, Any]:
        return {"groups": {name: [_timed(one, x), _timed(both, x)] for name, (one, both, x) in runs.items()}}

    return {}, work


def _timed(run: Any, x: Tensor) -> float:
    started = time.perf_counter()
    made = run(x)
    (made[0] if isinstance(made, tuple) else made).asnumpy()
    return time.perf_counter() - started


def main() -> None:
    config = SIZES[sys.argv[2]].config().model
    serve(lambda: set_up(sys.argv[1] == SIDES[1], groups(config, int(sys.argv[3]))))


if __name__ == "__main__":
    main()
