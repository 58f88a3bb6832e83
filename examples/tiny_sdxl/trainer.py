"""Resumable training of all weights of a network, on any number of ranks.

All weights are one vector, and the optimizer is a few lines of NumPy on it, so a checkpoint is four arrays and a
number. Ranks average their gradients; the result does not depend on the number of ranks.
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
class Hyperparameters:
    """Hyperparameters of Adam; `batch` is the number of samples per update over all ranks."""

    updates: int
    batch: int
    rate: float
    warmup: int = 100
    beta1: float = 0.9
    beta2: float = 0.99
    max_norm: float = 1.0
    average: float = 0.998  # decay of the exponential moving average of the weights

    def rate_at(self, update: int) -> float:
        """Return the learning rate of `update` (from 0): warm-up, constant, cosine decay over the last half."""
        fall = max(0.0, 2 * update / self.updates - 1)
        return self.rate * min(1.0, (update + 1) / self.warmup) * 0.5 * (1 + math.cos(math.pi * fall))


def initialize(parameters: Sequence[Parameter], seed: int, zero: Sequence[str]) -> None:
    """Initialize parameters: matrices preserve the variance of their input, normalisations are the identity.

    Parameters whose names end with one of `zero` start at zero, so that their residual branches start as no-ops.
    """
    for p in parameters:
        if p.name.endswith(".gamma"):
            value = np.ones(p.shape, np.float32)
        elif len(p.shape) < 2 or p.name.endswith(tuple(zero)):
            value = np.zeros(p.shape, np.float32)
        else:
            gain = 0.3 if "embedding" in p.name else float(np.prod(p.shape[1:])) ** -0.5
            value = gain * rng.normal(p.shape, seed, p.name)
        p.set_data(Tensor(value, p.dtype))


class Gradient(nn.Cell):
    """Loss of a batch and its gradient with respect to `parameters`."""

    def __init__(self, loss: nn.Cell, parameters: ParameterTuple) -> None:
        super().__init__(auto_prefix=False)
        self.loss_and_grad = ms.value_and_grad(loss, None, weights=parameters)

    def construct(self, *batch: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        return self.loss_and_grad(*batch)


class Trainer:
    """Adam (Kingma and Ba, 2015) on all `parameters`, with the moving average of the weights."""

    def __init__(
        self, loss: nn.Cell, parameters: Sequence[Parameter], hyperparameters: Hyperparameters, device: Backend
    ) -> None:
        for p in parameters:
            p.requires_grad = True
        self.parameters = ParameterTuple(parameters)
        self.hyperparameters = hyperparameters
        self.device = device
        self.gradient = backend.compile_cell(Gradient(loss, self.parameters), device.graph)
        self.mean_over_ranks = backend.AllReduceMean(device.world_size)
        self.update = 0
        self.weights = np.concatenate([p.asnumpy().ravel() for p in parameters])
        self.mean = np.zeros_like(self.weights)
        self.square = np.zeros_like(self.weights)
        self.averaged = self.weights.copy()
        self.curve: list[float] = []

    def step(self, *batch: Tensor) -> float:
        """Make one update with this rank's part of the batch; return the mean loss over all ranks."""
        hyperparameters = self.hyperparameters
        loss, gradients = self.gradient(*batch)
        parts = [g.asnumpy().ravel() for g in gradients]
        reduced = np.concatenate([*parts, loss.asnumpy().reshape(1)])
        reduced = self.mean_over_ranks(Tensor(reduced)).asnumpy()
        gradient = reduced[:-1] * min(1.0, hyperparameters.max_norm / (float(np.linalg.norm(reduced[:-1])) + 1e-6))
        self.mean += (1 - hyperparameters.beta1) * (gradient - self.mean)
        self.square += (1 - hyperparameters.beta2) * (gradient * gradient - self.square)
        rate = hyperparameters.rate_at(self.update)
        self.update += 1
        unbiased = np.sqrt(self.square / (1 - hyperparameters.beta2**self.update)) + 1e-8
        self.weights -= rate / (1 - hyperparameters.beta1**self.update) * self.mean / unbiased
        decay = min(hyperparameters.average, self.update / (self.update + 10))
        self.averaged += (1 - decay) * (self.weights - self.averaged)
        self._write(self.weights)
        self.curve.append(float(reduced[-1]))
        return self.curve[-1]

    def use_average(self) -> None:
        """Set the weights of the network to their moving average."""
        self._write(self.averaged)

    def save(self, path: Path) -> None:
        """Write the state to resume from."""
        with atomic_io.atomic_write(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, update=self.update, curve=self.curve, **self._arrays())

    def load(self, path: Path) -> None:
        """Resume from the state that `save` wrote."""
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
            # With `set_data` a compiled graph keeps reading the memory that the parameter had when it was compiled.
            ops.assign(p, Tensor(values[start:end].reshape(p.shape)))
            start = end


def train(trainer: Trainer, batch: Callable[[int], Sequence[Tensor]], state: Path, log: Callable[[str], None]) -> None:
    """Train to the end from the state file, saving to it every two minutes; `batch` returns the batch of an update."""
    if state.exists():
        trainer.load(state)
    started = saved = time.monotonic()
    first = trainer.update
    updates = trainer.hyperparameters.updates
    while trainer.update < updates:
        trainer.step(*batch(trainer.update))
        if trainer.device.is_main_process and (time.monotonic() - saved > 120 or trainer.update == updates):
            saved = time.monotonic()
            trainer.save(state)
            each = (saved - started) / (trainer.update - first)
            left = format_duration(each * (updates - trainer.update))
            loss = np.mean(trainer.curve[-100:])
            log(f"update {trainer.update}/{updates}  loss {loss:.4f}  {each:.2f} s each  {left} left")
