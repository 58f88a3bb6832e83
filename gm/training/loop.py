"""The training loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import mindspore as ms
from mindspore import Tensor

from gm.config import Config
from gm.models.sdxl import SDXL
from gm.runtime.backend import Backend, compile_cell
from gm.training import lr_schedule
from gm.training.batches import BatchLoader
from gm.training.optimizer import Update
from gm.training.train_step import TrainState, TrainStep

ASKED, DIVERGED = "asked", "diverged"


@dataclass(frozen=True)
class StepResult:
    """What one step did; `step` and `update` count from 1, `update` is the last one made (0 before the first).

    `loss` is the mean over all ranks, and `finite` tells whether no rank had to leave its gradient out.
    """

    step: int
    update: int
    loss: float
    finite: bool
    learning_rate: float  # the larger one of both encoders
    gradient_norm: float | None  # before clipping; None if this step made no update
    seconds: float
    ended: str | None = None  # why this was the last step, if that is not its number: ASKED or DIVERGED


def run(
    model: SDXL,
    learned: TrainState,
    loader: BatchLoader,
    config: Config,
    updates: int,
    backend: Backend,
    start: tuple[int, int] = (0, 0),
    asked: Callable[[], bool] = lambda: False,
) -> Iterator[StepResult]:
    """Train `learned` up to the config's last step and yield a report after each; the caller saves and shows.

    `start` are the steps and updates made before. It ends early, on all ranks after the same step, once `asked` says
    so on any (with several ranks after an update, since what they have summed is theirs), or when
    `max_skipped_steps` in a row were not finite: `learned` then has the rows of the last step that was.
    """
    training, half = config.training, backend.dtype == ms.float16
    both = TrainStep(model, learned, half, config.loss, loader.negative)
    step = compile_cell(both, backend.graph, "the training graph, with the first step", gradient=True)
    norms = tuple(model.token_norms(loader.words).values()) if training.preserve_embedding_norm else (1.0, 1.0)
    update = compile_cell(Update(learned, training, backend.world_size, norms), backend.graph)
    before, made = start
    rows = good = learned.arrays()
    skipped = 0
    for number in range(before + 1, training.total_step + 1):
        started = time.perf_counter()
        loss, finite = step(*loader.batch(number - 1))
        rates, norm = lr_schedule.learning_rates(min(made, updates - 1), updates, training, backend.world_size), None
        if number % training.gradient_accumulation_steps == 0 or number == training.total_step:
            with backend.abort_after_timeout():
                norm = float(update(*(Tensor(rate, ms.float32) for rate in rates)))
            made += 1
        # float() waits for the device.
        mean, fine, stopping = backend.all_reduce_mean((float(loss), float(finite), float(asked())))
        skipped, good = (0, rows) if fine == 1.0 else (skipped + 1, good)
        ended = None
        if stopping and (backend.world_size == 1 or norm is not None):
            ended = ASKED
        if skipped == training.max_skipped_steps:
            ended = DIVERGED
            learned.restore({"rows_1": good[0], "rows_2": good[1]})
        yield StepResult(number, made, mean, fine == 1.0, max(rates), norm, time.perf_counter() - started, ended)
        if ended:
            return
        if norm is not None:
            rows = learned.arrays()
