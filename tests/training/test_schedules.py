"""Learning rates at the updates that matter."""

import math

import pytest

from gm.config import TrainingConfig
from gm.training.schedules import learning_rate


def rates(schedule: str, warmup: int, updates: int) -> list[float]:
    config = TrainingConfig(learning_rate=2.0, lr_schedule=schedule, lr_warmup_updates=warmup)
    return [learning_rate(k, updates, config) for k in range(updates)]


def test_constant_stays() -> None:
    assert rates("constant", 0, 4) == [2.0] * 4


def test_warm_up_rises_in_equal_steps_to_the_peak() -> None:
    assert rates("constant", 3, 5) == [0.5, 1.0, 1.5, 2.0, 2.0]


def test_linear_falls_in_equal_steps_towards_0() -> None:
    assert rates("linear", 1, 5) == [1.0, 2.0, 1.5, 1.0, 0.5]


def test_cosine_is_half_way_down_in_the_middle() -> None:
    found = rates("cosine", 0, 8)
    assert found[0] == 2.0
    assert found[4] == pytest.approx(1.0)
    assert found[2] == pytest.approx(1 + math.cos(math.pi / 4))
    assert found == sorted(found, reverse=True)


def test_warm_up_longer_than_the_run_never_reaches_the_peak() -> None:
    assert rates("linear", 9, 3) == pytest.approx([0.2, 0.4, 0.6])
