"""Learning rates at the updates that matter."""

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch

from gm.config import TrainingConfig
from gm.training.lr_schedule import learning_rates

ENCODERS = ("clip_l", "clip_g")


def rates(schedule: str, warmup: int, updates: int, **options: float) -> list[float]:
    config = TrainingConfig(learning_rate=2.0, lr_scheduler=schedule, lr_warmup_steps=warmup, **options)  # type: ignore[arg-type]
    both = [learning_rates(k, updates, config, ENCODERS) for k in range(updates)]
    assert all(clip_l == clip_g for clip_l, clip_g in both)
    return [clip_l for clip_l, _ in both]


def test_constant_schedule_stays_at_the_peak() -> None:
    assert rates("constant", 0, 4) == [2.0] * 4


def test_warmup_rises_linearly_to_the_peak() -> None:
    assert rates("constant", 3, 5) == [0.5, 1.0, 1.5, 2.0, 2.0]


def test_linear_schedule_falls_to_0() -> None:
    assert rates("linear", 1, 5) == [1.0, 2.0, 1.5, 1.0, 0.5]


def test_cosine_schedule_is_at_half_the_peak_in_the_middle() -> None:
    found = rates("cosine", 0, 8)
    assert found[0] == 2.0
    assert found[4] == pytest.approx(1.0)
    assert found[2] == pytest.approx(1 + math.cos(math.pi / 4))
    assert found == sorted(found, reverse=True)


def test_warmup_longer_than_the_run_never_reaches_the_peak() -> None:
    assert rates("linear", 9, 3) == pytest.approx([0.2, 0.4, 0.6])


def torch_learning_rates(
    scheduler: Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler], updates: int
) -> list[float]:
    """Return the learning rates of a PyTorch scheduler with a peak of 2."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    lr_scheduler = scheduler(optimizer)
    found = []
    for _ in range(updates):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        lr_scheduler.step()
    return found


@pytest.mark.reference
@pytest.mark.parametrize("updates", [7, 40])
def test_one_cycle_is_pytorch_learning_rates(updates: int) -> None:
    expected = torch_learning_rates(lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 2.0, updates), updates)
    assert rates("one_cycle", 0, updates) == pytest.approx(expected, rel=1e-6)


def test_one_cycle_rises_over_the_warmup_steps() -> None:
    found = rates("one_cycle", 3, 10)
    assert found.index(max(found)) == 2
    assert max(found) == 2.0


@pytest.mark.reference
def test_restarts_and_polynomial_equal_diffusers() -> None:
    from diffusers.optimization import get_scheduler

    for name, ours, options in (
        ("cosine_with_restarts", "cosine_with_restarts", {"num_cycles": 3}),
        ("polynomial", "polynomial", {"power": 2.0}),
        ("cosine", "cosine", {}),
        ("linear", "linear", {}),
    ):
        options_ = {"lr_num_cycles": 3} if "num_cycles" in options else {"lr_power": 2.0} if options else {}
        expected = torch_learning_rates(
            lambda o, n=name, k=options: get_scheduler(n, o, num_warmup_steps=0, num_training_steps=12, **k), 12
        )  # type: ignore[misc]
        # Their polynomial falls to 1e-7, not to 0.
        assert rates(ours, 0, 12, **options_) == pytest.approx(expected, rel=1e-6, abs=3e-7), name


def test_scale_lr_multiplies_by_batch_accumulation_and_devices() -> None:
    config = TrainingConfig(
        learning_rate=1e-3,
        learning_rate_clip_g=2e-3,
        scale_lr=True,
        train_batch_size=4,
        gradient_accumulation_steps=3,
    )
    assert learning_rates(0, 10, config, ENCODERS, world=2) == pytest.approx((24e-3, 48e-3))
    assert learning_rates(0, 10, TrainingConfig(train_batch_size=4), ENCODERS, world=2) == (1e-3, 1e-3)


def test_each_encoder_has_its_own_peak() -> None:
    assert learning_rates(0, 10, TrainingConfig(learning_rate_clip_l=0.0), ENCODERS) == (0.0, 1e-3)
    assert learning_rates(0, 10, TrainingConfig(learning_rate_clip_g=5e-4), ENCODERS) == (1e-3, 5e-4)


@pytest.mark.parametrize(("optimizer", "rate"), [("adamw", 1e-3), ("direction", 0.04), ("prodigy", 1.0)])
def test_each_optimizer_has_a_default_rate(optimizer: str, rate: float) -> None:
    config = TrainingConfig(optimizer=optimizer, learning_rate_clip_g=0.5)
    assert learning_rates(0, 10, config, ENCODERS) == (rate, 0.5)
    chosen = dataclasses.replace(config, learning_rate=0.25)
    assert learning_rates(0, 10, chosen, ENCODERS) == (0.25, 0.5)
    assert learning_rates(0, 10, dataclasses.replace(chosen, learning_rate=0.0), ENCODERS) == (0.0, 0.5)
