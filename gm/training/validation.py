"""Validation loss: the loss on fixed samples of image, prompt, timestep and noise that training never uses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from mindspore import Tensor, nn

from gm.config import LossConfig
from gm.models.stable_diffusion import StableDiffusion
from gm.runtime.backend import Backend, compile_cell
from gm.training.batch_sampler import Sample
from gm.training.batches import BatchLoader
from gm.training.train_step import DiffusionLoss

_STREAM = "held-out"  # name of the noise stream


class ValidationLoss:
    """Loss on `num_samples` fixed samples, whose timesteps are spread evenly over the whole range.

    It is the plain squared error (in masks), whatever loss is trained, so that runs can be compared.
    `concept_of_sample` is the index of the concept of each.
    """

    def __init__(self, model: StableDiffusion, batches: BatchLoader, num_samples: int, backend: Backend) -> None:
        network = _PlainLoss(model, batches)
        self.network = compile_cell(network, backend.graph, "the graph of the validation loss")
        timesteps = (np.arange(num_samples) + 0.5) / num_samples * len(batches.sigmas)
        samples = []
        for k, timestep in enumerate(timesteps):
            image = k % len(batches.prompt_choices)
            templates = batches.prompt_choices[image].templates
            samples.append(Sample(image, False, templates[k % len(templates)], int(timestep), k))
        self.concept_of_sample = np.asarray([batches.concept_of_image[sample.image] for sample in samples])
        self.batches = [batches.assemble([sample], _STREAM, plain=True) for sample in samples]

    def losses(self, vectors: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the loss of every sample, float64 [num_samples], to compare embeddings sample by sample."""
        tensors = [Tensor(each) for each in vectors.values()]
        return np.asarray([float(self.network(*tensors, *batch.inputs)) for batch in self.batches])


@dataclass
class ValidationHistory:
    """The losses of all samples before training (`first`) and at the best step so far (`best`).

    `training_loss` is the smoothed training loss at the best step; `warned` tells whether overfitting was reported
    since.
    """

    first: list[float]
    best: list[float]
    best_step: int = 0
    training_loss: float = math.inf
    warned: bool = False

    def add(self, step: int, losses: np.ndarray, training_loss: float) -> str | None:
        """Add a measurement; return "best" for a new best, "overfit" once for overfitting since, else None.

        Overfitting: the validation loss has risen since its best by more than chance explains, while the training loss
        has fallen.
        """
        if losses.mean() < np.mean(self.best):
            self.best = losses.tolist()
            self.best_step = step
            self.training_loss = training_loss
            self.warned = False
            return "best"
        _, low, _ = change(np.asarray(self.best), losses)
        if low > 0 and training_loss < self.training_loss and not self.warned:
            self.warned = True
            return "overfit"
        return None


def change(before: np.ndarray, after: np.ndarray) -> tuple[float, float, float]:
    """Return the mean change of the loss over paired samples and the ends of its 95 % confidence interval.

    By the normal approximation, 1.96 standard errors on both sides; infinite ends for a single sample.
    """
    difference = after - before
    mean = float(difference.mean())
    if len(difference) < 2:
        return mean, -math.inf, math.inf
    half = 1.96 * float(difference.std(ddof=1)) / math.sqrt(len(difference))
    return mean, mean - half, mean + half


class _PlainLoss(nn.Cell):
    """Loss of the `inputs` of a batch, which follow the vectors of each text encoder."""

    def __init__(self, model: StableDiffusion, batches: BatchLoader) -> None:
        super().__init__(auto_prefix=False)
        config = LossConfig(negative_guidance=batches.config.loss.negative_guidance)
        self.loss = DiffusionLoss(model, config, batches.negative)
        self.num_encoders = len(batches.ids)

    def construct(self, *tensors: Tensor) -> Tensor:
        return self.loss(tensors[: self.num_encoders], tensors[self.num_encoders :])
