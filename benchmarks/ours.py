"""Workers that run this toolkit: python -m benchmarks.ours step|sampling|load|unet CASE."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

from benchmarks import cases
from benchmarks.cases import Case
from benchmarks.worker import Work, serve


def step(case: Case) -> tuple[dict[str, Any], Work]:
    """Return a worker that trains: `accumulation` steps a piece, each with its batch, and the update after them."""
    from gm import api
    from gm.training import setup, trainer

    config = case.config()
    made = setup.prepare(config)
    toolkit = api.load(config)
    run = trainer.prepare(toolkit.model, made, toolkit.backend)
    toolkit.model.release_vae()  # as training does where no previews are drawn
    reports = run.steps()

    def work() -> dict[str, Any]:
        started = time.perf_counter()
        losses = [next(reports).loss for _ in range(case.accumulation)]
        return {"seconds": (time.perf_counter() - started) / case.accumulation, "loss": losses[-1]}

    return {}, work


def sampling(case: Case) -> tuple[dict[str, Any], Work]:
    """Return a worker that draws `batch` images a piece."""
    from gm import api
    from gm.embeddings.embedding import combine
    from gm.sampling.image_request import ImageRequest

    config = case.config()
    toolkit = api.load(config)
    known = combine([], config.model)
    requests = [ImageRequest(cases.PROMPT, seed) for seed in range(case.batch)]

    def work() -> dict[str, Any]:
        ticks = [time.perf_counter() for _ in toolkit.pipeline.draw(requests, known, config.sampling)]
        return {"steps": cases.between(ticks)}

    return {}, work


def load(case: Case) -> tuple[dict[str, Any], Work]:
    """Return a worker whose piece of work is to load the model."""
    from gm import api

    held = []  # until the peak has been read

    def work() -> dict[str, Any]:
        held.append(api.load(case.config()))
        return {}

    return {}, work


def unet(case: Case) -> tuple[dict[str, Any], Work]:
    """Return a worker that takes the UNet alone, of random weights, forward and back to the text once a piece."""
    import mindspore as ms
    import numpy as np
    from mindspore import Tensor, nn
    from mindspore.nn.utils import no_init_parameters

    from gm.models.unet import UNet
    from gm.runtime import backend

    class Loss(nn.Cell):
        def __init__(self, network: nn.Cell) -> None:
            super().__init__(auto_prefix=False)
            self.network = network

        def construct(self, context: Tensor, x: Tensor, time: Tensor, vector: Tensor) -> Tensor:
            y = self.network(x, time, context, vector)
            return (y * y).mean()

    class Both(nn.Cell):
        def __init__(self, loss: nn.Cell) -> None:
            super().__init__(auto_prefix=False)
            self.loss = loss

        def construct(self, context: Tensor, x: Tensor, time: Tensor, vector: Tensor) -> Any:
            return ms.value_and_grad(self.loss, grad_position=0)(context, x, time, vector)

    config = case.config()
    model = config.model
    backend.setup(config.run)
    with no_init_parameters():
        network = UNet(model.unet, ms.float32)
    random = np.random.default_rng(0)
    for parameter in network.get_parameters():
        values = random.standard_normal(parameter.shape, np.float32)
        values *= np.float32(np.prod(parameter.shape[1:]) ** -0.5)
        parameter.set_data(Tensor.from_numpy(values))
    side = case.resolution // model.vae.reduction
    tokens = (1, model.text_encoder_1.positions, model.unet.context_dim)
    shapes = (tokens, (1, model.unet.in_channels, side, side), (1,), (1, model.unet.adm_in_channels))
    inputs = [Tensor(random.standard_normal(shape, np.float32)) for shape in shapes]
    inputs[2] = Tensor([500.0], ms.float32)
    both = backend.compile_cell(Both(Loss(network)), case.mode == "graph", gradient=True)

    def work() -> dict[str, Any]:
        loss, gradient = both(*inputs)
        return {"loss": float(loss), "gradient": float(np.linalg.norm(gradient.asnumpy()))}

    return {}, work


def main() -> None:
    logging.basicConfig(level=logging.INFO)
    kind, case = sys.argv[1], cases.read(sys.argv[2])
    serve(lambda: {"step": step, "sampling": sampling, "load": load, "unet": unet}[kind](case))


if __name__ == "__main__":
    main()
