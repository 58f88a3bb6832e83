"""Does it learn? The loss on draws that training never sees, always the same ones."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from mindspore import Tensor, nn

from gm.config import LossConfig
from gm.models.sdxl import SDXL
from gm.runtime.backend import Backend, compile_cell
from gm.training.batch_sampler import Sample
from gm.training.batches import BatchLoader
from gm.training.train_step import DiffusionLoss


class ValidationLoss:
    """`draws` fixed draws of image, prompt, noise and noise level; the levels are spread evenly over all.

    `owners` are the numbers of the words that they show.
    """

    def __init__(self, model: SDXL, loader: BatchLoader, draws: int, seed: int, backend: Backend) -> None:
        self.network = compile_cell(_Plain(model, loader), backend.graph, "the graph that measures the validation loss")
        levels = (np.arange(draws) + 0.5) / draws * len(loader.sigmas)
        samples = []
        for k, level in enumerate(levels):
            image = k % len(loader.prompts)
            templates = loader.prompts[image].templates
            samples.append(Sample(image, False, templates[k % len(templates)], int(level), k))
        self.owners = [loader.owners[sample.image] for sample in samples]
        self.batches = [loader.assemble([sample], seed, "held-out", plain=True) for sample in samples]

    def losses(self, clip_l: np.ndarray, clip_g: np.ndarray) -> np.ndarray:
        """Return the loss of every draw, float64 [draws]: compare two sets of rows draw by draw."""
        rows = Tensor(clip_l), Tensor(clip_g)
        return np.asarray([float(self.network(*rows, *batch)) for batch in self.batches])


@dataclass
class ValidationHistory:
    """How the validation loss went: `first`, before anything was learned, and `best`, both draw by draw.

    `best_step` is the step it was the best after, and `training_loss` the smoothed loss of training then.
    """

    first: list[float]
    best: list[float]
    best_step: int = 0
    training_loss: float = math.inf
    warned: bool = False

    def add(self, step: int, losses: np.ndarray, training_loss: float) -> str | None:
        """Take in what was measured after `step`; return what is to be said of it: "best", "overfit" or None.

        It over-fits where the validation loss has risen since its best by more than chance explains, while the
        loss of training has gone on falling. That is said once, until there is a new best.
        """
        if losses.mean() < np.mean(self.best):
            self.best, self.best_step, self.training_loss, self.warned = losses.tolist(), step, training_loss, False
            return "best"
        risen = change(np.asarray(self.best), losses)[1] > 0 and training_loss < self.training_loss
        if risen and not self.warned:
            self.warned = True
            return "overfit"
        return None


def change(before: np.ndarray, after: np.ndarray) -> tuple[float, float, float]:
    """Return the mean change of the loss, draw by draw, and the ends of its 95 % confidence interval.

    By the normal approximation: 1.96 standard errors on both sides. One draw leaves it open: the ends are infinite.
    """
    difference = after - before
    mean = float(difference.mean())
    if len(difference) < 2:
        return mean, -math.inf, math.inf
    half = 1.96 * float(difference.std(ddof=1)) / math.sqrt(len(difference))
    return mean, mean - half, mean + half


class _Plain(nn.Cell):
    """The loss of a batch given field by field, without its gradient."""

    def __init__(self, model: SDXL, loader: BatchLoader) -> None:
        super().__init__(auto_prefix=False)
        self.loss = DiffusionLoss(model, LossConfig(negative_guidance=loader.guidance), loader.negative)

    def construct(self, clip_l: Tensor, clip_g: Tensor, *batch: Tensor) -> Tensor:
        return self.loss(clip_l, clip_g, 1.0, batch)
