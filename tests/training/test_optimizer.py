"""Prodigy against its authors' implementation, on a quadratic function with a known minimum."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor
from prodigyopt import Prodigy  # type: ignore[import-untyped]

from gm.config import TrainingConfig
from gm.runtime.backend import compile_cell
from gm.training.optimizer import create_optimizer, create_train_state
from gm.training.train_state import TrainState

pytestmark = pytest.mark.reference

WIDTHS = (16, 24)
ENCODERS = ("clip_l", "clip_g")


def quadratic() -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """Return initial vectors, the minimum, and the curvature of each direction."""
    random = np.random.default_rng(0)
    # As small as CLIP's token embeddings: beside values of 1, the first estimate's steps of 1e-6 are mostly rounding.
    starts = [0.01 * random.standard_normal((2, width), np.float32) for width in WIDTHS]
    minima = [start + 0.03 * random.standard_normal(start.shape, np.float32) for start in starts]
    return starts, minima, [0.5 + random.random(start.shape, np.float32) for start in starts]


def named(arrays_: list[np.ndarray]) -> dict[str, np.ndarray]:
    return dict(zip(ENCODERS, arrays_, strict=True))


def arrays(state: TrainState) -> list[np.ndarray]:
    return list(state.vector_arrays().values())


def trained_by(
    config: TrainingConfig, updates: int, graph: bool = False
) -> tuple[list[np.ndarray], list[float], TrainState]:
    starts, minima, curvatures = quadratic()
    state = create_train_state(named(starts), config.optimizer)
    update = compile_cell(create_optimizer(state, config), graph)
    vectors, distances = [], []
    peaks = (config.learning_rate if config.learning_rate_clip_l is None else config.learning_rate_clip_l,)
    rates = [Tensor(rate, ms.float32) for rate in (*peaks, config.learning_rate)]
    for _ in range(updates):
        for total, each, minimum, curvature in zip(state.gradient_sums, arrays(state), minima, curvatures, strict=True):
            total.set_data(Tensor(curvature * (each - minimum)))
        state.num_summed.set_data(Tensor(1.0, ms.float32))
        update(*rates)
        vectors.append(np.concatenate([each.ravel() for each in arrays(state)]))
        distances.append(float(state.d.asnumpy()) if config.optimizer == "prodigy" else 1.0)
    return vectors, distances, state


@pytest.mark.parametrize("graph", [False, pytest.param(True, marks=pytest.mark.graph)], ids=["pynative", "graph"])
def test_prodigy_equals_its_authors_implementation(graph: bool) -> None:
    config = TrainingConfig(optimizer="prodigy", learning_rate=0.8, weight_decay=0.01, adam_beta2=0.99, max_grad_norm=0)
    starts, minima, curvatures = quadratic()
    vectors = [torch.from_numpy(start.copy()).requires_grad_() for start in starts]
    theirs = Prodigy(vectors, lr=0.8, betas=(0.9, 0.99), weight_decay=0.01, use_bias_correction=True)
    expected, distances = [], []
    for _ in range(40):
        for vector, minimum, curvature in zip(vectors, minima, curvatures, strict=True):
            vector.grad = torch.from_numpy(curvature) * (vector.detach() - torch.from_numpy(minimum))
        theirs.step()
        expected.append(np.concatenate([vector.detach().numpy().ravel().copy() for vector in vectors]))
        distances.append(theirs.param_groups[0]["d"])
    found, ours_, _ = trained_by(config, 40, graph)
    assert distances[-1] > 1e4 * distances[0]  # the estimate has grown
    np.testing.assert_allclose(ours_, distances, rtol=1e-3)
    start = np.concatenate([start.ravel() for start in starts])
    for one, other in zip(found, expected, strict=True):
        assert np.linalg.norm(one - other) < 1e-3 * np.linalg.norm(other - start) + 1e-6


def test_prodigy_reaches_the_minimum_without_a_learning_rate() -> None:
    starts, minima, _ = quadratic()
    for optimizer, learning_rate, reaches in (("prodigy", 1.0, True), ("prodigy", 0.1, True), ("adamw", 1e-6, False)):
        config = TrainingConfig(optimizer=optimizer, learning_rate=learning_rate, adam_beta2=0.99)
        found, _, _ = trained_by(config, 300)
        minimum, start = (np.concatenate([each.ravel() for each in each]) for each in (minima, starts))
        left = np.linalg.norm(found[-1] - minimum) / np.linalg.norm(start - minimum)
        assert bool(left < 0.1) is reaches, (optimizer, left)


def test_prodigy_freezes_an_encoder_and_skips_an_update_without_finite_steps() -> None:
    config = TrainingConfig(optimizer="prodigy", learning_rate=1.0, learning_rate_clip_l=0.0)
    _, _, state = trained_by(config, 5)
    starts = quadratic()[0]
    assert np.array_equal(arrays(state)[0], starts[0])
    assert not np.array_equal(arrays(state)[1], starts[1])
    before = state.snapshot()
    create_optimizer(state, config)(Tensor(0.0, ms.float32), Tensor(1.0, ms.float32))  # no finite step
    after = state.snapshot()
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_each_optimizer_has_its_own_state() -> None:
    starts = named(quadratic()[0])
    prodigy = {p.name for p in create_train_state(starts, "prodigy").get_parameters()}
    adamw = {p.name for p in create_train_state(starts).get_parameters()}
    assert prodigy - adamw == {"x0.clip_l", "x0.clip_g", "s.clip_l", "s.clip_g", "d", "r"}
    assert {"m.clip_l", "m.clip_g", "v.clip_l", "v.clip_g"} <= adamw


@pytest.mark.parametrize("graph", [False, pytest.param(True, marks=pytest.mark.graph)], ids=["pynative", "graph"])
@pytest.mark.parametrize("optimizer", ["adamw", "prodigy", "direction"])
def test_one_text_encoder_is_trained_as_one_of_two(optimizer: str, graph: bool) -> None:
    config = TrainingConfig(optimizer=optimizer, learning_rate=1e-2, learning_rate_clip_l=0.0, max_grad_norm=0.1)
    starts, minima, _ = quadratic()
    trained = []
    for encoders in (ENCODERS, ENCODERS[1:]):
        state = create_train_state({name: named(starts)[name] for name in encoders}, optimizer)
        update = compile_cell(create_optimizer(state, config), graph)
        for _ in range(3):
            state.gradient_sums[-1].set_data(Tensor(state.vectors[-1].asnumpy() - minima[1]))
            state.num_summed.set_data(Tensor(1.0, ms.float32))
            update(*(Tensor(1e-2, ms.float32) for _ in encoders))
        trained.append(state.vector_arrays()["clip_g"])
    assert not np.array_equal(trained[0], starts[1])
    assert np.array_equal(trained[0], trained[1])
