"""Prodigy beside its authors' own, on gradients of a bowl whose bottom is known."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor
from prodigyopt import Prodigy  # type: ignore[import-untyped]

from gm.config import TrainingConfig
from gm.runtime.backend import compile_cell
from gm.training.optimizer import Update
from gm.training.train_step import TrainState
from tests.project import Workshop

WIDTHS = (16, 24)


def bowl() -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """Return where rows start, where the bottom is, and how steep each direction is."""
    random = np.random.default_rng(0)
    # As small as CLIP's rows: beside values of 1, the first estimate's steps of 1e-6 are mostly rounding.
    starts = [0.01 * random.standard_normal((2, width), np.float32) for width in WIDTHS]
    bottoms = [start + 0.03 * random.standard_normal(start.shape, np.float32) for start in starts]
    return starts, bottoms, [0.5 + random.random(start.shape, np.float32) for start in starts]


def ours(config: TrainingConfig, updates: int, graph: bool = False) -> tuple[list[np.ndarray], list[float], TrainState]:
    starts, bottoms, steepness = bowl()
    learned = TrainState(starts, False, config.optimizer)
    update = compile_cell(Update(learned, config, 1), graph)
    found, distances = [], []
    peaks = (config.learning_rate if config.learning_rate_clip_l is None else config.learning_rate_clip_l,)
    rates = [Tensor(rate, ms.float32) for rate in (*peaks, config.learning_rate)]
    for _ in range(updates):
        for total, rows, bottom, steep in zip(learned.sums, learned.arrays(), bottoms, steepness, strict=True):
            total.set_data(Tensor(steep * (rows - bottom)))
        learned.summed.set_data(Tensor(1.0, ms.float32))
        update(*rates)
        found.append(np.concatenate([rows.ravel() for rows in learned.arrays()]))
        distances.append(float(learned.distance.asnumpy()) if config.optimizer == "prodigy" else 1.0)
    return found, distances, learned


@pytest.mark.parametrize("graph", [False, True], ids=["pynative", "graph"])
def test_prodigy_is_that_of_its_authors(graph: bool) -> None:
    config = TrainingConfig(optimizer="prodigy", learning_rate=0.8, weight_decay=0.01, adam_beta2=0.99, max_grad_norm=0)
    starts, bottoms, steepness = bowl()
    rows = [torch.from_numpy(start.copy()).requires_grad_() for start in starts]
    theirs = Prodigy(rows, lr=0.8, betas=(0.9, 0.99), weight_decay=0.01, use_bias_correction=True)
    expected, distances = [], []
    for _ in range(40):
        for row, bottom, steep in zip(rows, bottoms, steepness, strict=True):
            row.grad = torch.from_numpy(steep) * (row.detach() - torch.from_numpy(bottom))
        theirs.step()
        expected.append(np.concatenate([row.detach().numpy().ravel().copy() for row in rows]))
        distances.append(theirs.param_groups[0]["d"])
    found, ours_, _ = ours(config, 40, graph)
    assert distances[-1] > 1e4 * distances[0]  # it has found out something
    np.testing.assert_allclose(ours_, distances, rtol=1e-3)
    start = np.concatenate([start.ravel() for start in starts])
    for one, other in zip(found, expected, strict=True):
        assert np.linalg.norm(one - other) < 1e-3 * np.linalg.norm(other - start) + 1e-6


def test_prodigy_reaches_the_bottom_without_a_learning_rate() -> None:
    starts, bottoms, _ = bowl()
    for optimizer, learning_rate, reaches in (("prodigy", 1.0, True), ("prodigy", 0.1, True), ("adam", 1e-6, False)):
        config = TrainingConfig(optimizer=optimizer, learning_rate=learning_rate, adam_beta2=0.99)
        found, _, _ = ours(config, 300)
        bottom, start = (np.concatenate([rows.ravel() for rows in each]) for each in (bottoms, starts))
        left = np.linalg.norm(found[-1] - bottom) / np.linalg.norm(start - bottom)
        assert bool(left < 0.1) is reaches, (optimizer, left)


def test_prodigy_leaves_one_encoder_alone_and_skips_what_is_not_finite() -> None:
    config = TrainingConfig(optimizer="prodigy", learning_rate=1.0, learning_rate_clip_l=0.0)
    _, _, learned = ours(config, 5)
    starts = bowl()[0]
    assert np.array_equal(learned.arrays()[0], starts[0])
    assert not np.array_equal(learned.arrays()[1], starts[1])
    before = learned.snapshot()
    Update(learned, config, 1)(Tensor(0.0, ms.float32), Tensor(1.0, ms.float32))  # nothing was summed
    after = learned.snapshot()
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_prodigys_state_is_kept_and_adam_has_none(workshop: Workshop) -> None:
    starts = bowl()[0]
    names = {p.name for p in TrainState(starts, False, "prodigy").get_parameters()}
    plain = {p.name for p in TrainState(starts, False).get_parameters()}
    assert names - plain == {"start_1", "start_2", "slope_1", "slope_2", "distance", "gain"}
