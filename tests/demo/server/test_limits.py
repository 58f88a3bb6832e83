"""What one visitor may ask: checked before anything is allocated."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from demo.app.server import limits
from gm.config import SamplingConfig
from gm.errors import UserError

TRAINING = {"placeholder_token": "<toy>", "total_step": 10, "num_vectors": 2, "learning_rate": 1e-3}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_cols": 30_000_000}, "num cols is 30000000; it must be at most 100 here"),
        ({"num_cols": 50, "num_rows": 3}, "50 × 3 images are 150; ask for at most 100"),
        ({"num_cols": 50, "img": ["a", "b", "c"]}, "50 × 1 images × 3 init images are 150"),
        ({"width": 4_000_000_000}, "width is 4000000000; it must be at most 2048"),
        ({"batch_size": 1_000_000_000}, "batch size is 1000000000"),
        ({"sample_step": 10_000}, "sample step is 10000"),
        ({"prompt": "x" * 10_001}, "the prompt has 10001 characters"),
        ({"negative_prompt": "x" * 10_001}, "the negative prompt has 10001 characters"),
    ],
)
def test_large_requests_are_refused(options: dict[str, Any], message: str) -> None:
    limits.check_sampling(SamplingConfig())
    with pytest.raises(UserError, match=message):
        limits.check_sampling(dataclasses.replace(SamplingConfig(), **options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"placeholder_token": "cat"}, "is a single token already"),
        ({"placeholder_token": "my toy"}, "contains white space"),
        ({"placeholder_token": "<" * 10**6}, "has 1000000 characters, at most 256 are possible"),
        ({"total_step": 10**9}, "total step is 1000000000"),
        ({"num_vectors": 10**9}, "num vectors is 1000000000"),
        ({"learning_rate": math.inf}, "learning rate is inf"),
        ({"learning_rate": math.nan}, "learning rate is nan"),
        ({"initializer_token": "x" * 10**6}, "the initializer token has 1000000 characters"),
    ],
)
def test_training_options_are_checked_before_a_run_starts(options: dict[str, Any], message: str) -> None:
    limits.check_training(TRAINING)
    with pytest.raises(UserError, match=message) as caught:
        limits.check_training({**TRAINING, **options})
    assert len(str(caught.value)) < 300
