"""Did it learn? The loss on draws that training never sees, the same before and after."""

from __future__ import annotations

import numpy as np
from mindspore import Tensor, nn

from gm.backend import Backend, compiled
from gm.data.batches import Sample
from gm.sdxl import SDXL
from gm.training.feed import Feed
from gm.training.step import Loss


class HeldOut:
    """`draws` fixed draws of picture, prompt, noise and noise level; the levels are spread evenly over all."""

    def __init__(self, model: SDXL, feed: Feed, draws: int, seed: int, backend: Backend) -> None:
        self.network = compiled(_Plain(model), backend.graph, "the graph that measures the held-out loss")
        levels = (np.arange(draws) + 0.5) / draws * len(feed.sigmas)
        samples = [
            Sample(k % len(feed.latents.mean), False, k % len(feed.ids_1), int(level), k)
            for k, level in enumerate(levels)
        ]
        self.batches = [feed.assemble([sample], seed, "held-out") for sample in samples]

    def losses(self, rows_1: np.ndarray, rows_2: np.ndarray) -> np.ndarray:
        """Return the loss of every draw, float64 [draws]: compare two sets of rows draw by draw."""
        rows = Tensor(rows_1), Tensor(rows_2)
        return np.asarray([float(self.network(*rows, *batch)) for batch in self.batches])


class _Plain(nn.Cell):
    """The loss of a batch given field by field, without its gradient."""

    def __init__(self, model: SDXL) -> None:
        super().__init__(auto_prefix=False)
        self.loss = Loss(model)

    def construct(self, rows_1: Tensor, rows_2: Tensor, *batch: Tensor) -> Tensor:
        return self.loss(rows_1, rows_2, 1.0, batch)
