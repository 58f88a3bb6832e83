"""Spherical SGD against a restatement in PyTorch, and its invariants: norms, angles, prior, steps without a concept."""

from __future__ import annotations

from collections.abc import Sequence

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor

from gm.config import TrainingConfig
from gm.runtime.backend import compile_cell
from gm.training.callbacks.embedding_summary import angles
from gm.training.optimizer import create_optimizer, create_train_state
from gm.training.train_state import TrainState

WIDTHS = {"clip_l": 24, "clip_g": 40}
Arrays = list[np.ndarray]


def arrays(seed: int, rows: int = 3, size: float = 1.0) -> Arrays:
    random = np.random.default_rng(seed)
    return [(size * random.standard_normal((rows, width))).astype(np.float32) for width in WIDTHS.values()]


def starts(seed: int = 0) -> Arrays:
    """Initial vectors of norms 0.4 and 0.7."""
    return [
        norm * each / np.linalg.norm(each, axis=1, keepdims=True)
        for norm, each in zip((0.4, 0.7), arrays(seed), strict=True)
    ]


def config_of(**options: float) -> TrainingConfig:
    return TrainingConfig(optimizer="direction", **{"learning_rate": 0.04, **options})  # type: ignore[arg-type]


def state_of(vectors: Sequence[np.ndarray]) -> TrainState:
    return create_train_state(dict(zip(WIDTHS, vectors, strict=True)), "direction")


def current(state: TrainState) -> Arrays:
    return list(state.vector_arrays().values())


class Updater:
    """Gives gradients to the optimizer, as the sums over `steps` steps."""

    def __init__(self, state: TrainState, config: TrainingConfig, graph: bool = False) -> None:
        self.state = state
        self.update = compile_cell(create_optimizer(state, config), graph)

    def __call__(self, gradients: Sequence[np.ndarray], *rates: float, steps: float = 1.0) -> None:
        for total, gradient in zip(self.state.gradient_sums, gradients, strict=True):
            total.set_data(Tensor(gradient * np.float32(steps)))
        self.state.num_summed.set_data(Tensor(steps, ms.float32))
        self.update(*(Tensor(rate, ms.float32) for rate in (rates or (0.04, 0.04))))


def theirs(
    start: np.ndarray, minimum: np.ndarray, rates: Sequence[float], kappa: float, beta: float
) -> list[np.ndarray]:
    """Return the vectors after each update: those of a quadratic loss of e = m v with the prior -κ μᵀv, by autograd."""
    mu = torch.nn.functional.normalize(torch.from_numpy(start), dim=1)
    m = torch.from_numpy(start).norm(dim=1, keepdim=True)
    v, average, found = mu.clone(), torch.zeros(len(start), 1), []
    for t, rate in enumerate(rates, 1):
        v.requires_grad_()
        loss = 0.5 * (m * v - torch.from_numpy(minimum)).square().sum() - kappa * (mu * v).sum()
        (gradient,) = torch.autograd.grad(loss, v)
        v = v.detach()
        gradient = gradient - (gradient * v).sum(1, keepdim=True) * v
        average = beta * average + (1 - beta) * gradient.square().sum(1, keepdim=True)
        v = v - rate * gradient / ((average / (1 - beta**t)).sqrt() + 1e-8)
        v = torch.nn.functional.normalize(v, dim=1)
        found.append((m * v).numpy())
    return found


@pytest.mark.reference
@pytest.mark.parametrize(
    ("kappa", "beta", "graph"),
    [
        (0.0, 0.0, False),
        (1e-4, 0.0, False),
        (0.3, 0.9, False),
        pytest.param(1e-4, 0.0, True, marks=pytest.mark.graph),
    ],
)
def test_twenty_updates_equal_those_of_pytorch(kappa: float, beta: float, graph: bool) -> None:
    """With a schedule, and a learning rate for each encoder."""
    minima, state = arrays(1, size=0.1), state_of(starts())
    update = Updater(state, config_of(kappa=kappa, beta=beta), graph)
    rates = [[peak * (1 - k / 20) for k in range(20)] for peak in (0.04, 0.1)]
    expected = [
        theirs(start, minimum, each, kappa, beta) for start, minimum, each in zip(starts(), minima, rates, strict=True)
    ]
    for k in range(20):
        update([each - minimum for each, minimum in zip(current(state), minima, strict=True)], rates[0][k], rates[1][k])
        for ours, other, start in zip(current(state), expected, starts(), strict=True):
            moved = np.linalg.norm(other[k] - start)
            assert moved > 1e-2
            assert np.linalg.norm(ours - other[k]) < 1e-5 * moved


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4])
def test_every_update_rotates_by_the_arc_tangent_of_the_rate_and_keeps_the_norm(size: float) -> None:
    state = state_of(starts())
    update = Updater(state, config_of(kappa=0.0))
    for k in range(10):
        before = current(state)
        update(arrays(10 + k, size=size), 0.04, 0.01)
        for now, old, start, rate in zip(current(state), before, starts(), (0.04, 0.01), strict=True):
            np.testing.assert_allclose(angles(now, old), np.degrees(np.arctan(rate)), rtol=1e-4)
            np.testing.assert_allclose(np.linalg.norm(now, axis=1), np.linalg.norm(start, axis=1), rtol=1e-6)


def test_a_strong_prior_holds_the_vectors_at_their_start() -> None:
    found = []
    for kappa in (0.0, 100.0):
        state = state_of(starts())
        update = Updater(state, config_of(kappa=kappa))
        for _ in range(12):
            update(arrays(2))
        found.append(max(angles(now, start).max() for now, start in zip(current(state), starts(), strict=True)))
    assert found[0] > 20
    assert found[1] < 3 * np.degrees(np.arctan(0.04))  # each update rotates, if only to and fro


def test_vectors_that_no_step_has_shown_stay() -> None:
    """Though they have a prior: it alone would rotate them back as far as the images do."""
    state = state_of(starts())
    update = Updater(state, config_of(kappa=1e-4, beta=0.5))
    update(arrays(3))
    before = state.snapshot()
    gradients = arrays(4)
    for each in gradients:
        each[1] = 0
    update(gradients)
    for name, old in before.items():
        now = state.snapshot()[name]
        if name.split(".")[0] in ("vectors", "s", "t"):
            assert np.array_equal(now[1], old[1]), name
            assert not np.array_equal(now[[0, 2]], old[[0, 2]]), name


def test_frozen_encoders_and_updates_without_a_finite_step_change_nothing() -> None:
    state = state_of(starts())
    update = Updater(state, config_of(learning_rate_clip_l=0.0))
    update(arrays(5), 0.0, 0.04)
    assert np.array_equal(current(state)[0], starts()[0])
    assert not np.array_equal(current(state)[1], starts()[1])
    before = state.snapshot()
    update([0 * each for each in arrays(5)], steps=0.0)
    assert all(np.array_equal(value, before[name]) for name, value in state.snapshot().items())


def test_the_mean_gradient_of_several_steps_counts_and_nothing_is_clipped() -> None:
    found = []
    for config, steps, size in ((config_of(), 1.0, 1.0), (config_of(), 4.0, 1.0), (config_of(kappa=1.0), 1.0, 1e4)):
        state = state_of(starts())
        Updater(state, config)(arrays(6, size=size), steps=steps)
        found.append(current(state))
    for one, four, large in zip(*found, strict=True):
        np.testing.assert_allclose(four, one, rtol=1e-5, atol=1e-7)
        # Clipped to norm 1, the gradient would be no larger than the prior's.
        np.testing.assert_allclose(large, one, atol=2e-4)


def test_a_restored_state_continues_bit_for_bit() -> None:
    """Also into vectors of other norms and directions, as those of other prompts would be."""
    config = config_of(kappa=0.1, beta=0.9)
    state = state_of(starts())
    update = Updater(state, config)
    for k in range(6):
        if k == 3:
            middle = state.snapshot()
        update(arrays(k))
    resumed = state_of([2 * each for each in starts(9)])
    resumed.restore(middle)
    update = Updater(resumed, config)
    for k in range(3, 6):
        update(arrays(k))
    for name, value in state.snapshot().items():
        assert np.array_equal(resumed.snapshot()[name], value), name
