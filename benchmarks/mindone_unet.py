"""A worker that runs mindone's UNet: PYTHON -m benchmarks.mindone_unet graph|pynative CONFIG.

PYTHON is that of an environment with mindone 0.5.0. Five of its operators have no kernel on the CPU of MindSpore 2.8.0
and are replaced, before it is imported, by MindSpore's that have; nothing else of it is changed.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, mint, nn, ops
from mindspore.nn.utils import no_init_parameters

from benchmarks.worker import Work, serve


class _Conv2d(nn.Conv2d):
    """In the place of `mint.nn.Conv2d`."""

    def __init__(self, inputs: int, outputs: int, kernel_size: Any, stride: Any = 1, padding: Any = 0, **rest: Any):
        if isinstance(padding, tuple | list):
            padding = (padding[0], padding[0], padding[1], padding[1])
        bias = rest.get("bias", True)
        super().__init__(inputs, outputs, kernel_size, stride, "pad", padding, has_bias=bias)


class _LayerNorm(nn.Cell):
    """In the place of `mint.nn.LayerNorm`."""

    def __init__(self, width: int, eps: float = 1e-5, elementwise_affine: bool = True, bias: bool = True, **rest: Any):
        super().__init__()
        assert elementwise_affine
        assert bias
        self.weight = Parameter(np.ones(width, np.float32), "weight")
        self.bias = Parameter(np.zeros(width, np.float32), "bias")
        self.normalise = ops.LayerNorm(-1, -1, eps)

    def construct(self, x: Tensor) -> Tensor:
        return self.normalise(x, self.weight, self.bias)[0]


def _gated(self: Any, x: Tensor) -> Tensor:
    """In the place of `GEGLU.construct`, which cuts with Tensor.chunk."""
    value, gate = ops.Split(-1, 2)(self.proj(x))
    return value * self.gelu(gate)


def _patch() -> None:
    mint.nn.Conv2d, mint.nn.LayerNorm = _Conv2d, _LayerNorm
    mint.nn.functional.gelu, mint.arange = ops.gelu, ops.arange
    from mindone.diffusers.models import activations  # type: ignore[import-not-found]

    activations.GEGLU.construct = _gated


class _Loss(nn.Cell):
    def __init__(self, unet: Any) -> None:
        super().__init__(auto_prefix=False)
        self.unet = unet

    def construct(self, context: Tensor, x: Tensor, time: Tensor, pooled: Tensor, sizes: Tensor) -> Tensor:
        y = self.unet(x, time, context, added_cond_kwargs={"text_embeds": pooled, "time_ids": sizes})[0]
        return (y * y).mean()


def set_up(mode: str, config: dict[str, Any]) -> tuple[dict[str, Any], Work]:
    """Return a worker that goes forward and back once a piece."""
    ms.set_device("CPU")
    ms.set_context(mode=ms.GRAPH_MODE if mode == "graph" else ms.PYNATIVE_MODE)
    if mode == "pynative":
        ms.runtime.launch_blocking()  # 2 to 20 times slower without
    _patch()
    from mindone.diffusers.models import UNet2DConditionModel

    with no_init_parameters():
        unet = UNet2DConditionModel(**{k: v for k, v in config.items() if not k.startswith("_")})
    random = np.random.default_rng(0)
    for parameter in unet.get_parameters():
        values = random.standard_normal(parameter.shape, np.float32)
        values *= np.float32(np.prod(parameter.shape[1:]) ** -0.5)
        parameter.set_data(Tensor.from_numpy(values))
        parameter.requires_grad = False
    width = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
    side = config["sample_size"]
    shapes = ((1, 77, config["cross_attention_dim"]), (1, 4, side, side), (1,), (1, width), (1, 6))
    inputs = [Tensor(random.standard_normal(shape, np.float32)) for shape in shapes]
    inputs[2] = Tensor(np.array([500], np.int32))
    both = ms.value_and_grad(_Loss(unet.set_train(False)), 0, None)

    def work() -> dict[str, Any]:
        loss, gradient = both(*inputs)
        return {"loss": float(loss), "gradient": float(np.linalg.norm(gradient.asnumpy()))}

    return {}, work


def main() -> None:
    serve(lambda: set_up(sys.argv[1], json.loads(sys.argv[2])))


if __name__ == "__main__":
    main()
