"""Options that an optimizer has no use for are refused, and unusual learning rates are named."""

from __future__ import annotations

from typing import Any

import pytest

from gm.config import TrainingConfig
from gm.errors import UserError
from gm.training import optimizer_options

ENCODERS = ("clip_l", "clip_g")


def check(**options: Any) -> None:
    optimizer_options.check(TrainingConfig(**{"optimizer": "direction", "learning_rate": 0.04, **options}), ENCODERS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"weight_decay": 0.01},
            "--weight_decay 0.01 has no meaning with --optimizer direction: it fixes the norms of the vectors; "
            "leave it out, give 0, or give --optimizer adamw",
        ),
        (
            {"preserve_embedding_norm": 1.0},
            "--preserve_embedding_norm 1 has no meaning with --optimizer direction: it fixes the norms of the vectors; "
            "leave it out, give 0, or give --optimizer adamw",
        ),
        (
            {"max_grad_norm": 0.5},
            "--max_grad_norm 0.5 has no meaning with --optimizer direction: it divides each gradient by its norm; "
            "leave it out, give 0, or give --optimizer adamw",
        ),
        (
            {"adam_beta2": 0.99},
            "--adam_beta2 0.99 has no meaning with --optimizer direction: its own decay rate is --beta; "
            "leave it out, or give --optimizer adamw",
        ),
        (
            {"adam_beta1": 0.8},
            "--adam_beta1 0.8 has no meaning with --optimizer direction: it has no moments; "
            "leave it out, or give --optimizer adamw",
        ),
        (
            {"adam_epsilon": 1e-6},
            "--adam_epsilon 1e-06 has no meaning with --optimizer direction: it has no moments; "
            "leave it out, or give --optimizer adamw",
        ),
        ({"token_scale": "median"}, "--token_scale 'median' must be auto, mean or a number above 0"),
        ({"token_scale": "-1"}, "--token_scale '-1' must be auto, mean or a number above 0"),
        ({"token_scale": "nan"}, "--token_scale 'nan' must be auto, mean or a number above 0"),
    ],
)
def test_what_has_no_meaning_with_directions_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        check(**options)
    assert str(caught.value) == message
    check(**{**options, "optimizer": "adamw"})


def test_options_that_mean_nothing_is_done_are_taken() -> None:
    check(max_grad_norm=0.0, weight_decay=0.0, token_scale="0.4", beta=0.9, kappa=0.0)


@pytest.mark.parametrize(
    ("options", "warning"),
    [
        ({"learning_rate": 0.01}, None),
        ({"learning_rate": 0.01, "scale_lr": True, "train_batch_size": 4}, None),
        ({"learning_rate": 1e-3, "learning_rate_clip_g": 0.02}, None),
        ({"learning_rate": 0.0}, None),  # named as a run that trains nothing
        ({"learning_rate": 1e-3, "scale_lr": True, "gradient_accumulation_steps": 8}, None),
        ({"learning_rate": 1e-3}, "by 0.0573° at an update, the arc tangent of the learning rate 0.001; 0.01 to 0.04"),
        ({"learning_rate": 1.0}, "by 45° at an update, the arc tangent of the learning rate 1; 0.01 to 0.04 is usual"),
        ({"learning_rate": 0.04, "optimizer": "prodigy"}, "--optimizer prodigy estimates the learning rate"),
    ],
)
def test_an_unusual_learning_rate_is_named(
    options: dict[str, Any], warning: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    check(**options)
    assert len(caplog.messages) == (warning is not None)
    assert warning is None or warning in caplog.text
