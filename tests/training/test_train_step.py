"""One step and one update: what they change, what they leave alone, what they do about overflow."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from gm.config import TrainingConfig
from gm.runtime.backend import Backend, compile_cell
from gm.text.tokenizer import Tokenizer
from gm.training import setup, trainer
from gm.training.batches import Batch, BatchLoader
from gm.training.optimizer import Update
from gm.training.train_step import TrainState, TrainStep
from tests.project import Workshop

EAGER = Backend("CPU", graph=False, dtype=ms.float32)
CONFIG = TrainingConfig(learning_rate=1e-2, max_grad_norm=0.0)


@pytest.fixture(scope="module")
def loader(workshop: Workshop) -> BatchLoader:
    return trainer.prepare(workshop.model, setup.prepare(workshop.config()), EAGER)[1]


def learned_rows(seed: int = 0, half: bool = False) -> TrainState:
    random = np.random.default_rng(seed)
    return TrainState([random.standard_normal((2, width)).astype(np.float32) for width in (16, 24)], half)


def rates(one: float = 1e-2, two: float | None = None) -> tuple[Tensor, Tensor]:
    return Tensor(one, ms.float32), Tensor(one if two is None else two, ms.float32)


def test_the_rows_alone_are_trained(workshop: Workshop, loader: BatchLoader) -> None:
    before = {p.name: p.asnumpy().copy() for p in workshop.model.get_parameters()}
    learned = learned_rows()
    rows_before = learned.arrays()
    step, update = TrainStep(workshop.model, learned, half=False), Update(learned, CONFIG, 1)
    step(*loader.batch(0))
    update(*rates())
    trainable = [p.name for p in step.get_parameters() if p.requires_grad]
    assert trainable == ["rows_1", "rows_2"]
    state = [p for p in learned.get_parameters() if not p.name.startswith("rows")]
    # Sum, mean and square of each row, and four counters: kilobytes, where whole tables would be hundreds of megabytes.
    assert sum(p.size for p in state) == 3 * 2 * (16 + 24) + 4
    changed = [p.name for p in workshop.model.get_parameters() if not np.array_equal(p.asnumpy(), before[p.name])]
    assert changed == []
    assert all((a != b).all() for a, b in zip(learned.arrays(), rows_before, strict=True))


def test_the_gradient_is_the_slope_of_the_loss(workshop: Workshop, loader: BatchLoader) -> None:
    learned, batch = learned_rows(), loader.batch(0)
    step = TrainStep(workshop.model, learned, half=False)
    step(*batch)
    gradients = [s.asnumpy().copy() for s in learned.sums]
    for which, gradient in enumerate(gradients):
        start = learned.rows[which].asnumpy().copy()
        direction = gradient / np.linalg.norm(gradient)
        losses = []
        for sign in (1, -1):
            learned.rows[which].set_data(Tensor(start + sign * 0.05 * direction))
            losses.append(float(step(*batch)[0]))
        learned.rows[which].set_data(Tensor(start))
        assert (losses[0] - losses[1]) / 0.1 == pytest.approx(np.linalg.norm(gradient), rel=0.02)


def test_an_update_uses_the_mean_of_its_steps_and_starts_afresh(workshop: Workshop, loader: BatchLoader) -> None:
    learned = learned_rows()
    step, update = TrainStep(workshop.model, learned, half=False), Update(learned, CONFIG, 1)
    single = []
    for number in range(2):
        step(*loader.batch(number))
        single.append(learned.sums[0].asnumpy().copy())
    norm = float(update(*rates()))
    mean = [single[1] / 2, None]
    assert learned.means[0].asnumpy() == pytest.approx(0.1 * mean[0], rel=1e-4)
    assert norm > np.linalg.norm(mean[0])  # both encoders' rows together
    assert not learned.sums[0].asnumpy().any()
    assert float(learned.summed.asnumpy()) == 0


@pytest.mark.parametrize("max_norm", [0.0, 1e-3, 1e3])
def test_clipping_is_by_the_norm_over_both_encoders(workshop: Workshop, loader: BatchLoader, max_norm: float) -> None:
    learned = learned_rows()
    step = TrainStep(workshop.model, learned, half=False)
    update = Update(learned, TrainingConfig(max_grad_norm=max_norm), 1)
    step(*loader.batch(0))
    gradients = [s.asnumpy().copy() for s in learned.sums]
    whole = np.sqrt(sum((g**2).sum() for g in gradients))
    assert float(update(*rates())) == pytest.approx(whole, rel=1e-5)
    factor = min(1.0, max_norm / whole) if max_norm else 1.0
    for mean, gradient in zip(learned.means, gradients, strict=True):
        np.testing.assert_allclose(mean.asnumpy(), 0.1 * factor * gradient, rtol=2e-3)


def test_first_update_moves_every_value_by_the_learning_rate(workshop: Workshop, loader: BatchLoader) -> None:
    # With bias correction the first update's mean / √square is ±1; without, it would be about 3.
    learned = learned_rows()
    before = learned.arrays()
    TrainStep(workshop.model, learned, half=False)(*loader.batch(0))
    Update(learned, CONFIG, 1)(*rates(1e-2))
    moved = np.abs(learned.arrays()[0] - before[0])
    np.testing.assert_allclose(moved, 1e-2, rtol=2e-2)


def test_weight_decay_pulls_rows_towards_0(workshop: Workshop, loader: BatchLoader) -> None:
    ends = []
    for decay in (0.0, 0.5):
        learned = learned_rows()
        start = learned.arrays()[0]
        TrainStep(workshop.model, learned, half=False)(*loader.batch(0))
        Update(learned, TrainingConfig(weight_decay=decay), 1)(*rates(1e-2))
        ends.append(learned.arrays()[0])
    np.testing.assert_allclose(ends[0] - ends[1], 1e-2 * 0.5 * start, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("graph", [False, True], ids=["pynative", "graph"])
def test_an_overflowed_step_is_skipped_and_halves_the_scale(
    workshop: Workshop, loader: BatchLoader, graph: bool
) -> None:
    learned = learned_rows(half=True)
    step = compile_cell(TrainStep(workshop.model, learned, half=True), graph)
    update = compile_cell(Update(learned, CONFIG, 1), graph)
    good = loader.batch(0)
    bad = Batch(Tensor(good.x.asnumpy() * np.float32(np.inf)), *good[1:])
    loss, finite = step(*good)
    kept = learned.sums[0].asnumpy().copy()
    assert bool(finite)
    assert np.isfinite(float(loss))
    assert not bool(step(*bad)[1])
    assert np.array_equal(learned.sums[0].asnumpy(), kept)
    assert (float(learned.summed.asnumpy()), float(learned.scale.asnumpy())) == (1.0, 2.0**15)
    update(*rates())
    assert float(learned.updates.asnumpy()) == 1
    rows = learned.arrays()
    step(*bad)
    update(*rates())  # nothing finite since the last update: nothing may change
    assert np.array_equal(learned.arrays()[0], rows[0])
    assert float(learned.updates.asnumpy()) == 1
    assert np.isfinite(learned.arrays()[1]).all()


def test_the_scale_doubles_after_a_long_streak(
    workshop: Workshop, loader: BatchLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gm.training.train_step._SCALE_WINDOW", 3)
    learned = learned_rows(half=True)
    step = TrainStep(workshop.model, learned, half=True)
    scales = []
    for number in range(6):
        step(*loader.batch(number))
        scales.append(float(learned.scale.asnumpy()) / 2**16)
    assert scales == [1, 1, 2, 2, 2, 4]


def test_the_loss_scale_leaves_no_trace_in_gradients(workshop: Workshop, loader: BatchLoader) -> None:
    sums = []
    for half in (False, True):
        learned = learned_rows(half=half)
        loss, _ = TrainStep(workshop.model, learned, half)(*loader.batch(0))
        sums.append([float(loss), *(s.asnumpy() for s in learned.sums)])
    np.testing.assert_allclose(sums[0][0], sums[1][0], rtol=1e-6)
    np.testing.assert_allclose(sums[0][1], sums[1][1], rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("frozen", [0, 1])
@pytest.mark.parametrize("graph", [False, True], ids=["pynative", "graph"])
def test_one_encoder_can_be_left_as_it_is(workshop: Workshop, loader: BatchLoader, frozen: int, graph: bool) -> None:
    name = ("learning_rate_clip_l", "learning_rate_clip_g")[frozen]
    config = TrainingConfig(learning_rate=1e-2, preserve_embedding_norm=0.5, weight_decay=0.1, **{name: 0.0})
    learned = learned_rows()
    before = learned.arrays()
    TrainStep(workshop.model, learned, half=False)(*loader.batch(0))
    norms = [np.linalg.norm(s.asnumpy()) for s in learned.sums]
    update = compile_cell(Update(learned, config, 1, (1.0, 1.0)), graph)
    norm = float(update(*rates(*(0.0 if k == frozen else 1e-2 for k in (0, 1)))))
    assert norm == pytest.approx(norms[1 - frozen], rel=1e-5)  # what is not trained is not clipped for
    assert np.array_equal(learned.arrays()[frozen], before[frozen])
    assert not np.array_equal(learned.arrays()[1 - frozen], before[1 - frozen])


def test_each_encoder_moves_by_its_own_learning_rate(workshop: Workshop, loader: BatchLoader) -> None:
    learned = learned_rows()
    before = learned.arrays()
    TrainStep(workshop.model, learned, half=False)(*loader.batch(0))
    Update(learned, CONFIG, 1)(*rates(1e-2, 3e-3))
    for now, start, moved in zip(learned.arrays(), before, (1e-2, 3e-3), strict=True):
        np.testing.assert_allclose(np.abs(now - start), moved, rtol=2e-2)


@pytest.mark.parametrize("pull", [0.0, 0.25, 1.0])
def test_norms_are_pulled_towards_the_tables(workshop: Workshop, loader: BatchLoader, pull: float) -> None:
    """Once an update, each row by itself, along its own direction."""
    ends = []
    for config in (CONFIG, TrainingConfig(learning_rate=1e-2, max_grad_norm=0.0, preserve_embedding_norm=pull)):
        learned = learned_rows()
        TrainStep(workshop.model, learned, half=False)(*loader.batch(0))
        Update(learned, config, 1, (0.5, 2.0))(*rates())
        ends.append(learned.arrays())
    for free, pulled, target in zip(*ends, (0.5, 2.0), strict=True):
        before = np.linalg.norm(free, axis=1, keepdims=True)
        np.testing.assert_allclose(pulled, free * (1 + pull * (target / before - 1)), rtol=1e-5, atol=1e-7)


def test_the_usual_norm_is_the_median_of_the_words_in_the_prompts(workshop: Workshop, loader: BatchLoader) -> None:
    assert {*Tokenizer().encode("a photo of my own")} <= {*loader.words}
    assert max(loader.words) < 49406
    assert len(loader.words) < 100
    found = workshop.model.token_norms(loader.words)
    for norm, table in zip(found.values(), workshop.model.token_tables().values(), strict=True):
        lengths = np.sqrt((table[loader.words].astype(np.float64) ** 2).sum(1))
        assert (lengths < norm).sum() == pytest.approx(len(loader.words) / 2, abs=1)
