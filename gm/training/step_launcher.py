"""Launching of training steps; their results are tensors that the device may not have computed yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Tensor

from gm.runtime.backend import compile_cell
from gm.training import lr_schedule, optimizer
from gm.training.callbacks.base import TrainerView
from gm.training.initial_vectors import initial_vectors
from gm.training.regularization import ContextLoss, InitialDistance
from gm.training.signals import StopSignals
from gm.training.train_step import Batch, TrainStep


@dataclass(frozen=True)
class LaunchedStep:
    """A step that was launched, with the update that follows it, if one does; `read` waits for both."""

    step: int
    update: int  # the last one so far, its own included
    learning_rate: float  # the largest of all text encoders
    vectors: Mapping[str, np.ndarray | Tensor]  # that the step uses
    started: float  # time.perf_counter()
    gradient_norm: Tensor | None
    means: Callable[[], list[float]]

    def read(self) -> tuple[float, bool, bool, float | None, float | None]:
        """Return over all ranks the mean loss, whether all were finite, whether any was signalled to stop.

        Then the gradient norm, and the mean context loss; None for one that there is not.
        """
        loss, finite_share, stop_share, *context = self.means()
        norm = None if self.gradient_norm is None else float(self.gradient_norm)
        return loss, finite_share == 1.0, stop_share > 0, norm, context[0] if context else None


class StepLauncher:
    """Launches the steps of a run, each with the update that follows it.

    `updates` counts those of the run so far. With `run_ahead`, nothing is read from the device.
    """

    def __init__(self, trainer: TrainerView, signals: StopSignals, updates: int, run_ahead: bool) -> None:
        self.setup = trainer.setup
        self.state = trainer.state
        self.backend = trainer.backend
        self.signals = signals
        self.updates = updates
        self.copy_vectors = trainer.state.vector_copies if run_ahead else trainer.state.vector_arrays
        self.vectors: Mapping[str, np.ndarray | Tensor] = self.copy_vectors()
        self.train_step, self.optimizer_step = _compile(trainer)

    def launch(self, step: int, batch: Batch, started: float) -> LaunchedStep:
        """Launch a step, counted from 1, and the update after it if one is due."""
        vectors = self.vectors
        learning_rates = self._learning_rates()
        loss, finite, *context = self.train_step(*batch.inputs)
        gradient_norm = None
        if self.has_update(step):
            with self.backend.abort_after_timeout():
                gradient_norm = self.optimizer_step(*(Tensor(rate, ms.float32) for rate in learning_rates))
            self.updates += 1
            self.vectors = self.copy_vectors()
        means = self.backend.launch_all_reduce_mean((loss, finite, float(self.signals.stop_requested), *context))
        return LaunchedStep(step, self.updates, max(learning_rates), vectors, started, gradient_norm, means)

    def has_update(self, step: int) -> bool:
        """Return whether an optimizer update follows `step`."""
        training = self.setup.config.training
        return step % training.gradient_accumulation_steps == 0 or step == training.total_step

    def _learning_rates(self) -> tuple[float, ...]:
        """Return the learning rate of each text encoder at the next update."""
        num_updates = self.setup.num_updates
        update = min(self.updates, num_updates - 1)
        training = self.setup.config.training
        return lr_schedule.learning_rates(update, num_updates, training, self.state.encoders, self.backend.world_size)


def _compile(trainer: TrainerView) -> tuple[Callable[..., tuple[Tensor, ...]], Callable[..., Tensor]]:
    """Return training step and optimizer, in graph mode as graphs, compiled at their first call."""
    config, backend, batches = trainer.setup.config, trainer.backend, trainer.batches
    half = backend.dtype == ms.float16
    context_loss = ContextLoss(trainer.model, batches.context.encoders) if batches.context else None
    distance = None
    if config.loss.initializer_reg_weight:
        distance = InitialDistance(initial_vectors(trainer.model, trainer.setup))
    train_step = TrainStep(trainer.model, trainer.state, half, config.loss, batches.negative, context_loss, distance)
    token_norms: tuple[float, ...] = ()
    if config.training.preserve_embedding_norm:
        token_norms = tuple(trainer.model.token_norms(batches.prompt_tokens).values())
    update = optimizer.create_optimizer(trainer.state, config.training, backend.world_size, token_norms)
    return (
        compile_cell(train_step, backend.graph, "the training graph, with the first step", gradient=True),
        compile_cell(update, backend.graph),
    )
