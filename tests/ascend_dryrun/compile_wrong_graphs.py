"""Compile Cells that must fail, and one that must not, under the stand-ins; print a line for each: a test reads it."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore._c_expression import MSContext

from gm.config import RunConfig
from gm.runtime import backend


class Product(nn.Cell):
    def construct(self, x: Tensor, y: Tensor) -> Tensor:
        return ops.matmul(x, y)


class UnknownName(nn.Cell):
    def construct(self, x: Tensor, y: Tensor) -> Tensor:
        return x + absent(y)  # noqa: F821


class Slope(nn.Cell):
    """Its function has a gradient that does not fit the input."""

    def __init__(self) -> None:
        super().__init__()
        self.square = Square()

    def construct(self, x: Tensor, y: Tensor) -> Tensor:
        return ms.grad(self.square)(x)


class Square(nn.Cell):
    def construct(self, x: Tensor) -> Tensor:
        return x * x

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        return (ops.matmul(dout, dout),)


def tensor(*shape: int, dtype: object = ms.float32) -> Tensor:
    return Tensor(np.zeros(shape), dtype)


CASES = {
    "product": (Product, tensor(2, 3), tensor(3, 4)),
    "product of float32 with float16": (Product, tensor(2, 3), tensor(3, 4, dtype=ms.float16)),
    "product of wrong shapes": (Product, tensor(2, 3), tensor(4, 3)),
    "unknown name": (UnknownName, tensor(2, 3), tensor(2, 3)),
    "gradient of wrong shapes": (Slope, tensor(2, 3), tensor(2, 3)),
}

backend.setup(RunConfig(device_target="Ascend"))
for name, (cell, x, y) in CASES.items():
    try:
        backend.compile_cell(cell(), graph=True)(x, y)
        print(f"{name}: compiled")
    except Exception as error:
        print(f"{name}: {type(error).__name__}")
print(f"card: {MSContext.get_instance().get_ascend_soc_version()}")
