"""Training every weight of a network, on any number of ranks, so that it can be stopped and taken up again.

All weights are one vector, and the optimizer is a few lines of NumPy on it: what a run has to save is then four arrays
and a number. Ranks average their gradients; equal numbers come out of equal samples on any number of ranks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from gm.runtime import atomic_io, backend, rng
from gm.runtime.backend import Backend
from gm.runtime.duration import format_duration


@dataclass(frozen=True)
class Recipe:
    """How long and how fast: `batch` samples an update; rates are Adam's."""

    updates: int
    batch: int
    rate: float
    warmup: int = 100
    beta1: float = 0.9
    beta2: float = 0.99
    max_norm: float = 1.0
    average: float = 0.998  # decay of the exponential moving average that is kept in the end

    def rate_at(self, update: int) -> float:
        """Return the learning rate of `update` (from 0): a rise, a plateau, over the last half the fall of a cosine."""
        fall = max(0.0, 2 * update / self.updates - 1)
        return self.rate * min(1.0, (update + 1) / self.warmup) * 0.5 * (1 + math.cos(math.pi * fall))


def initialise(parameters: Sequence[Parameter], seed: int, quiet: Sequence[str]) -> None:
    """Give every parameter its first value: matrices keep the variance of what they multiply, norms do nothing.

    Those whose names end as one of `quiet` start at zero: what they end begins as if it were not there.
    """
    for p in parameters:
        if p.name.endswith(".gamma"):
            value = np.ones(p.shape, np.float32)
        elif len(p.shape) < 2 or p.name.endswith(tuple(quiet)):
            value = np.zeros(p.shape, np.float32)
        else:
            gain = 0.3 if "embedding" in p.name else float(np.prod(p.shape[1:])) ** -0.5
            value = gain * rng.normal(p.shape, seed, p.name)
        p.set_data(Tensor(value, p.dtype))


class Gradient(nn.Cell):
    """From a batch to (loss, its gradient with respect to `parameters`)."""

    def __init__(self, loss: nn.Cell, parameters: ParameterTuple) -> None:
        super().__init__(auto_prefix=False)
        self.both = ms.value_and_grad(loss, None, weights=parameters)

    def construct(self, *batch: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        return self.both(*batch)


class Learner:
    """Adam (Kingma and Ba, 2015) on all of `parameters`, their moving average, and the state between sessions."""

    def __init__(self, loss: nn.Cell, parameters: Sequence[Parameter], recipe: Recipe, where: Backend) -> None:
        for p in parameters:
            p.requires_grad = True
        self.parameters, self.recipe, self.where = ParameterTuple(parameters), recipe, where
        self.gradient = backend.compile_cell(Gradient(loss, self.parameters), where.graph)
        self.mean_over_ranks = backend.AllReduceMean(where.world_size)
        self.update = 0
        self.weights = np.concatenate([p.asnumpy().ravel() for p in parameters])
        self.mean, self.square = np.zeros_like(self.weights), np.zeros_like(self.weights)
        self.averaged = self.weights.copy()
        self.curve: list[float] = []

    def step(self, *batch: Tensor) -> float:
        """Make one update from this rank's share of the batch; return the loss over all ranks."""
        recipe = self.recipe
        loss, gradients = self.gradient(*batch)
        parts = [g.asnumpy().ravel() for g in gradients]
        joined = np.concatenate([*parts, loss.asnumpy().reshape(1)])
        joined = self.mean_over_ranks(Tensor(joined)).asnumpy()
        gradient = joined[:-1] * min(1.0, recipe.max_norm / (float(np.linalg.norm(joined[:-1])) + 1e-6))
        self.mean += (1 - recipe.beta1) * (gradient - self.mean)
        self.square += (1 - recipe.beta2) * (gradient * gradient - self.square)
        rate = recipe.rate_at(self.update)
        self.update += 1
        unbiased = np.sqrt(self.square / (1 - recipe.beta2**self.update)) + 1e-8
        self.weights -= rate / (1 - recipe.beta1**self.update) * self.mean / unbiased
        decay = min(recipe.average, self.update / (self.update + 10))
        self.averaged += (1 - decay) * (self.weights - self.averaged)
        self._write(self.weights)
        self.curve.append(float(joined[-1]))
        return self.curve[-1]

    def use_average(self) -> None:
        """Give the network the moving average of its weights."""
        self._write(self.averaged)

    def save(self, path: Path) -> None:
        """Write everything that the next session needs."""
        with atomic_io.atomic_write(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, update=self.update, curve=self.curve, **self._arrays())

    def load(self, path: Path) -> None:
        """Go on where `save` was called."""
        with np.load(path) as state:
            for name, array in self._arrays().items():
                array[:] = state[name]
            self.update, self.curve = int(state["update"]), [float(x) for x in state["curve"]]
        self._write(self.weights)

    def _arrays(self) -> dict[str, np.ndarray]:
        return {"weights": self.weights, "mean": self.mean, "square": self.square, "averaged": self.averaged}

    def _write(self, values: np.ndarray) -> None:
        start = 0
        for p in self.parameters:
            end = start + int(np.prod(p.shape))
            # A compiled graph goes on with what it was compiled with if `set_data` gives a parameter other memory.
            ops.assign(p, Tensor(values[start:end].reshape(p.shape)))
            start = end


def run(learner: Learner, batch: Callable[[int], Sequence[Tensor]], state: Path, say: Callable[[str], None]) -> None:
    """Train to the end from wherever `state` was left, saving there every few minutes; `batch` is told the update."""
    if state.exists():
        learner.load(state)
    started = saved = time.monotonic()
    first = learner.update
    while learner.update < learner.recipe.updates:
        learner.step(*batch(learner.update))
        if learner.where.is_main_process and (
            time.monotonic() - saved > 120 or learner.update == learner.recipe.updates
        ):
            saved = time.monotonic()
            learner.save(state)
            each = (saved - started) / (learner.update - first)
            left = format_duration(each * (learner.recipe.updates - learner.update))
            loss = np.mean(learner.curve[-100:])
            say(f"update {learner.update}/{learner.recipe.updates}  loss {loss:.4f}  {each:.2f} s each  {left} left")
