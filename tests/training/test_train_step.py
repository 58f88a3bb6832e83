"""Training step and optimizer update: what they change, clipping, norms, and overflow."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from gm.config import TrainingConfig
from gm.runtime import float_status
from gm.runtime.backend import Backend, compile_cell
from gm.text.tokenizer import Tokenizer
from gm.training import setup, trainer
from gm.training.batches import BatchLoader
from gm.training.optimizer import create_optimizer, create_train_state
from gm.training.train_state import TrainState
from gm.training.train_step import TrainStep
from tests.project import Workshop

EAGER = Backend("CPU", graph=False, dtype=ms.float32)
CONFIG = TrainingConfig(learning_rate=1e-2, max_grad_norm=0.0)


@pytest.fixture(scope="module")
def loader(workshop: Workshop) -> BatchLoader:
    return trainer.prepare(workshop.model, setup.prepare(workshop.config()), EAGER).batches


def create_state(seed: int = 0, half: bool = False) -> TrainState:
    random = np.random.default_rng(seed)
    widths = {"clip_l": 16, "clip_g": 24}
    vectors = {name: random.standard_normal((2, width)).astype(np.float32) for name, width in widths.items()}
    return create_train_state(vectors, half=half)


def arrays(state: TrainState) -> list[np.ndarray]:
    return list(state.vector_arrays().values())


def rates(one: float = 1e-2, two: float | None = None) -> tuple[Tensor, Tensor]:
    return Tensor(one, ms.float32), Tensor(one if two is None else two, ms.float32)


def test_only_the_vectors_are_trained(workshop: Workshop, loader: BatchLoader) -> None:
    before = {p.name: p.asnumpy().copy() for p in workshop.model.get_parameters()}
    state = create_state()
    vectors_before = arrays(state)
    step, update = TrainStep(workshop.model, state, half=False), create_optimizer(state, CONFIG, 1)
    step(*loader.batch(0).inputs)
    update(*rates())
    trainable = [p.name for p in step.get_parameters() if p.requires_grad]
    assert trainable == ["vectors.clip_l", "vectors.clip_g"]
    others = [p for p in state.get_parameters() if not p.name.startswith("vectors")]
    # Gradient sums, m, v and four scalars: kilobytes, where whole tables would be hundreds of megabytes.
    assert sum(p.size for p in others) == 3 * 2 * (16 + 24) + 4
    changed = [p.name for p in workshop.model.get_parameters() if not np.array_equal(p.asnumpy(), before[p.name])]
    assert changed == []
    assert all((a != b).all() for a, b in zip(arrays(state), vectors_before, strict=True))


def test_gradient_equals_the_difference_quotient_of_the_loss(workshop: Workshop, loader: BatchLoader) -> None:
    state, batch = create_state(), loader.batch(0)
    step = TrainStep(workshop.model, state, half=False)
    step(*batch.inputs)
    gradients = [s.asnumpy().copy() for s in state.gradient_sums]
    for which, gradient in enumerate(gradients):
        start = state.vectors[which].asnumpy().copy()
        direction = gradient / np.linalg.norm(gradient)
        losses = []
        for sign in (1, -1):
            state.vectors[which].set_data(Tensor(start + sign * 0.05 * direction))
            losses.append(float(step(*batch.inputs)[0]))
        state.vectors[which].set_data(Tensor(start))
        assert (losses[0] - losses[1]) / 0.1 == pytest.approx(np.linalg.norm(gradient), rel=0.02)


def test_update_uses_the_mean_gradient_and_resets_the_sums(workshop: Workshop, loader: BatchLoader) -> None:
    state = create_state()
    step, update = TrainStep(workshop.model, state, half=False), create_optimizer(state, CONFIG, 1)
    single = []
    for number in range(2):
        step(*loader.batch(number).inputs)
        single.append(state.gradient_sums[0].asnumpy().copy())
    norm = float(update(*rates()))
    mean = [single[1] / 2, None]
    assert state.m[0].asnumpy() == pytest.approx(0.1 * mean[0], rel=1e-4)
    assert norm > np.linalg.norm(mean[0])  # both encoders' rows together
    assert not state.gradient_sums[0].asnumpy().any()
    assert float(state.num_summed.asnumpy()) == 0


@pytest.mark.parametrize("max_norm", [0.0, 1e-3, 1e3])
def test_clipping_uses_the_norm_over_all_encoders(workshop: Workshop, loader: BatchLoader, max_norm: float) -> None:
    state = create_state()
    step = TrainStep(workshop.model, state, half=False)
    update = create_optimizer(state, TrainingConfig(max_grad_norm=max_norm), 1)
    step(*loader.batch(0).inputs)
    gradients = [s.asnumpy().copy() for s in state.gradient_sums]
    whole = np.sqrt(sum((g**2).sum() for g in gradients))
    assert float(update(*rates())) == pytest.approx(whole, rel=1e-5)
    factor = min(1.0, max_norm / whole) if max_norm else 1.0
    for mean, gradient in zip(state.m, gradients, strict=True):
        np.testing.assert_allclose(mean.asnumpy(), 0.1 * factor * gradient, rtol=2e-3)


def test_first_update_moves_every_value_by_the_learning_rate(workshop: Workshop, loader: BatchLoader) -> None:
    # With bias correction the first update's mean / √square is ±1; without, it would be about 3.
    state = create_state()
    before = arrays(state)
    TrainStep(workshop.model, state, half=False)(*loader.batch(0).inputs)
    create_optimizer(state, CONFIG, 1)(*rates(1e-2))
    moved = np.abs(arrays(state)[0] - before[0])
    np.testing.assert_allclose(moved, 1e-2, rtol=2e-2)


def test_weight_decay_pulls_vectors_towards_0(workshop: Workshop, loader: BatchLoader) -> None:
    results = []
    for decay in (0.0, 0.5):
        state = create_state()
        start = arrays(state)[0]
        TrainStep(workshop.model, state, half=False)(*loader.batch(0).inputs)
        create_optimizer(state, TrainingConfig(weight_decay=decay), 1)(*rates(1e-2))
        results.append(arrays(state)[0])
    np.testing.assert_allclose(results[0] - results[1], 1e-2 * 0.5 * start, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("graph", [False, pytest.param(True, marks=pytest.mark.graph)], ids=["pynative", "graph"])
def test_overflowed_step_is_skipped_and_halves_the_loss_scale(
    workshop: Workshop, loader: BatchLoader, graph: bool
) -> None:
    state = create_state(half=True)
    step = compile_cell(TrainStep(workshop.model, state, half=True), graph)
    update = compile_cell(create_optimizer(state, CONFIG, 1), graph)
    good = loader.batch(0)
    bad = good._replace(x=Tensor(good.x.asnumpy() * np.float32(np.inf)))
    loss, finite = step(*good.inputs)
    kept = state.gradient_sums[0].asnumpy().copy()
    assert bool(finite)
    assert np.isfinite(float(loss))
    assert not bool(step(*bad.inputs)[1])
    assert np.array_equal(state.gradient_sums[0].asnumpy(), kept)
    assert (float(state.num_summed.asnumpy()), float(state.loss_scale.asnumpy())) == (1.0, 2.0**15)
    update(*rates())
    assert float(state.updates.asnumpy()) == 1
    vectors = arrays(state)
    step(*bad.inputs)
    update(*rates())  # nothing finite since the last update: nothing may change
    assert np.array_equal(arrays(state)[0], vectors[0])
    assert float(state.updates.asnumpy()) == 1
    assert np.isfinite(arrays(state)[1]).all()


def test_on_a_card_that_saturates_the_status_registers_skip_a_step(
    workshop: Workshop, loader: BatchLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(float_status, "saturates", lambda: True)
    bits = np.zeros(8, np.int32)
    monkeypatch.setattr(float_status, "_get_status", lambda status: Tensor(bits))
    monkeypatch.setattr(float_status, "_clear_status", lambda status: status)
    state = create_state(half=True)
    step = TrainStep(workshop.model, state, half=True)
    assert bool(step(*loader.batch(0).inputs)[1])
    kept = state.gradient_sums[0].asnumpy().copy()
    bits[3] = 1
    loss, finite = step(*loader.batch(1).inputs)
    assert (np.isfinite(float(loss)), bool(finite)) == (True, False)
    assert np.array_equal(state.gradient_sums[0].asnumpy(), kept)
    assert (float(state.num_summed.asnumpy()), float(state.loss_scale.asnumpy())) == (1.0, 2.0**15)
    # Without loss scaling there is nothing to adapt.
    assert not TrainStep(workshop.model, create_state(), half=False).saturates


def test_loss_scale_doubles_after_a_long_finite_streak(
    workshop: Workshop, loader: BatchLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gm.training.train_step._SCALE_WINDOW", 3)
    state = create_state(half=True)
    step = TrainStep(workshop.model, state, half=True)
    scales = []
    for number in range(6):
        step(*loader.batch(number).inputs)
        scales.append(float(state.loss_scale.asnumpy()) / 2**16)
    assert scales == [1, 1, 2, 2, 2, 4]


def test_loss_scale_does_not_change_gradients(workshop: Workshop, loader: BatchLoader) -> None:
    sums = []
    for half in (False, True):
        state = create_state(half=half)
        loss, _ = TrainStep(workshop.model, state, half)(*loader.batch(0).inputs)
        sums.append([float(loss), *(s.asnumpy() for s in state.gradient_sums)])
    np.testing.assert_allclose(sums[0][0], sums[1][0], rtol=1e-6)
    np.testing.assert_allclose(sums[0][1], sums[1][1], rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("frozen", [0, 1])
@pytest.mark.parametrize("graph", [False, pytest.param(True, marks=pytest.mark.graph)], ids=["pynative", "graph"])
def test_one_encoder_can_be_frozen(workshop: Workshop, loader: BatchLoader, frozen: int, graph: bool) -> None:
    name = ("learning_rate_clip_l", "learning_rate_clip_g")[frozen]
    config = TrainingConfig(learning_rate=1e-2, preserve_embedding_norm=0.5, weight_decay=0.1, **{name: 0.0})
    state = create_state()
    before = arrays(state)
    TrainStep(workshop.model, state, half=False)(*loader.batch(0).inputs)
    norms = [np.linalg.norm(s.asnumpy()) for s in state.gradient_sums]
    update = compile_cell(create_optimizer(state, config, 1, (1.0, 1.0)), graph)
    norm = float(update(*rates(*(0.0 if k == frozen else 1e-2 for k in (0, 1)))))
    assert norm == pytest.approx(norms[1 - frozen], rel=1e-5)  # what is not trained is not clipped for
    assert np.array_equal(arrays(state)[frozen], before[frozen])
    assert not np.array_equal(arrays(state)[1 - frozen], before[1 - frozen])


def test_each_encoder_moves_by_its_own_learning_rate(workshop: Workshop, loader: BatchLoader) -> None:
    state = create_state()
    before = arrays(state)
    TrainStep(workshop.model, state, half=False)(*loader.batch(0).inputs)
    create_optimizer(state, CONFIG, 1)(*rates(1e-2, 3e-3))
    for now, start, moved in zip(arrays(state), before, (1e-2, 3e-3), strict=True):
        np.testing.assert_allclose(np.abs(now - start), moved, rtol=2e-2)


@pytest.mark.parametrize("pull", [0.0, 0.25, 1.0])
def test_norms_are_moved_towards_those_of_the_tokens(workshop: Workshop, loader: BatchLoader, pull: float) -> None:
    """Once an update, each row by itself, along its own direction."""
    results = []
    for config in (CONFIG, TrainingConfig(learning_rate=1e-2, max_grad_norm=0.0, preserve_embedding_norm=pull)):
        state = create_state()
        TrainStep(workshop.model, state, half=False)(*loader.batch(0).inputs)
        create_optimizer(state, config, 1, (0.5, 2.0))(*rates())
        results.append(arrays(state))
    for free, pulled, target in zip(*results, (0.5, 2.0), strict=True):
        before = np.linalg.norm(free, axis=1, keepdims=True)
        np.testing.assert_allclose(pulled, free * (1 + pull * (target / before - 1)), rtol=1e-5, atol=1e-7)


def test_token_norm_is_the_median_over_the_tokens_of_the_prompts(workshop: Workshop, loader: BatchLoader) -> None:
    assert {*Tokenizer().encode("a photo of my own")} <= {*loader.prompt_tokens}
    assert max(loader.prompt_tokens) < 49406
    assert len(loader.prompt_tokens) < 100
    norms = workshop.model.token_norms(loader.prompt_tokens)
    tables = workshop.model.token_tables()
    assert list(norms) == list(tables) == ["clip_l", "clip_g"]
    for encoder, table in tables.items():
        lengths = np.sqrt((table[loader.prompt_tokens].astype(np.float64) ** 2).sum(1))
        assert (lengths < norms[encoder]).sum() == pytest.approx(len(loader.prompt_tokens) / 2, abs=1)
