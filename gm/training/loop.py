"""The training loop."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import mindspore as ms
from mindspore import Tensor

from gm.backend import Backend, compiled
from gm.config import TrainingConfig
from gm.sdxl import SDXL
from gm.training import schedules
from gm.training.feed import Feed
from gm.training.step import Learned, Step, Update


@dataclass(frozen=True)
class Report:
    """What one step did; `step` and `update` count from 1, `update` is the last one made (0 before the first)."""

    step: int
    update: int
    loss: float
    finite: bool
    learning_rate: float
    gradient_norm: float | None  # before clipping; None if this step made no update
    seconds: float


def run(
    model: SDXL, learned: Learned, feed: Feed, config: TrainingConfig, updates: int, backend: Backend
) -> Iterator[Report]:
    """Train `learned` for `config.total_step` steps and yield a report after each; the caller saves and shows."""
    half = backend.dtype == ms.float16
    step = compiled(Step(model, learned, half), backend.graph, "the training graph, with the first step", gradient=True)
    update = compiled(Update(learned, config, backend.world), backend.graph)
    made = 0
    for number in range(1, config.total_step + 1):
        started = time.perf_counter()
        loss, finite = step(*feed.batch(number - 1))
        rate, norm = schedules.learning_rate(min(made, updates - 1), updates, config), None
        if number % config.gradient_accumulation_steps == 0 or number == config.total_step:
            norm = float(update(Tensor(rate, ms.float32)))
            made += 1
        loss = float(loss)  # waits for the device
        yield Report(number, made, loss, bool(finite), rate, norm, time.perf_counter() - started)
