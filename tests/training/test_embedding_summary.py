"""Norms, angles and nearest tokens over the run, and the warning about long vectors."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gm.text.bpe import START
from gm.training.callbacks import embedding_summary
from gm.training.callbacks.embedding_summary import EmbeddingSummary
from gm.training.step_result import StepResult

WIDTH = 4


def summary(vectors: list[list[float]], initial: list[list[float]], total_step: int = 200) -> tuple[Any, list[dict]]:
    """Return the callback of a run of one text encoder and two concepts, and the list that it logs to.

    Vector 0 is that of the first concept. All tokens have the norm 0.5.
    """
    records: list[dict[str, Any]] = []
    trainer = SimpleNamespace(
        model=SimpleNamespace(token_tables=lambda: {"clip_l": np.full((START + 2, WIDTH), 0.25, np.float32)}),
        batches=SimpleNamespace(prompt_tokens=[1, 2, 3]),
        setup=SimpleNamespace(
            config=SimpleNamespace(training=SimpleNamespace(total_step=total_step, save_ckpt_interval=60)),
            concepts=[
                SimpleNamespace(placeholder_token="<a>", vector_slice=slice(0, 1)),
                SimpleNamespace(placeholder_token="<b>", vector_slice=slice(1, 3)),
            ],
        ),
        state=SimpleNamespace(vector_arrays=lambda: {"clip_l": np.asarray(vectors, np.float32)}),
        initial_vectors={"clip_l": np.asarray(initial, np.float32)},
        log=records.append,
    )
    callback = EmbeddingSummary()
    callback.on_train_begin(trainer)  # type: ignore[arg-type]
    return callback, records


def result(step: int, is_last: bool = False) -> StepResult:
    return StepResult(step, step, 0.1, 0.1, True, 0, 0.1, 0.1, 0.1, is_last=is_last)


INITIAL = [[0.5, 0.0, 0.0, 0.0], [0.0, 0.5, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]]
VECTORS = [[0.5, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 1.0, 1.0]]


def test_norms_are_those_over_the_tokens_and_angles_those_to_the_initial_vectors(
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, (first, second) = run_once(VECTORS)
    assert (first["placeholder_token"], second["placeholder_token"]) == ("<a>", "<b>")
    assert (first["relative_norms"], first["relative_norms_before"]) == ([1.0], [1.0])
    assert first["angles"] == [0.0]
    assert second["norms"] == pytest.approx([1.0, 2**0.5])
    assert second["relative_norms"] == pytest.approx([2.0, 2 * 2**0.5])
    assert second["relative_norms_before"] == pytest.approx([1.0, 2.0])
    assert second["angles"] == pytest.approx([90.0, 45.0])
    assert len(second["nearest_tokens"]) == 2
    assert second["nearest_tokens"][0][0][1] == pytest.approx(0.5)
    assert "nearest tokens to <b> in clip_l" in capsys.readouterr().out


def run_once(vectors: list[list[float]]) -> tuple[EmbeddingSummary, list[dict[str, Any]]]:
    callback, records = summary(vectors, INITIAL)
    callback.on_step_end(result(7, is_last=True))
    return callback, records


@pytest.mark.parametrize(
    ("total_step", "steps"),
    [(130, [25, 50, 60, 75, 100, 120, 125, 130]), (5000, [60, 100, 120, 180, 200, 240, 300])],
)
def test_records_come_at_intervals_and_with_every_embedding_file(total_step: int, steps: list[int]) -> None:
    callback, records = summary(VECTORS, INITIAL, total_step)
    for step in range(1, min(total_step, 300) + 1):
        callback.on_step_end(result(step, is_last=step == total_step))
        assert callback.needs_state(step) == (step in steps) or step == total_step
    assert [record["step"] for record in records[::2]] == steps


def test_a_norm_above_three_times_the_tokens_is_a_warning_once(caplog: pytest.LogCaptureFixture) -> None:
    callback, _ = summary([[1.5, 0.0, 0.0, 0.0], [0.1, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.6]], INITIAL)
    callback.on_step_end(result(60))
    callback.on_step_end(result(120))
    assert caplog.messages == [
        "vector 1 of <b> has 3.2 times the norm of the tokens of clip_l; prompts with such vectors are followed less: "
        "--optimizer direction and --preserve_embedding_norm keep the norm, fewer steps help, too"
    ]


def test_vectors_that_are_not_finite_are_left_out() -> None:
    assert run_once([*VECTORS[:2], [np.nan] * 4])[1] == []


@pytest.mark.parametrize("degrees", [1e-3, 0.5, 60.0, 179.0])
def test_small_and_large_angles_are_exact(degrees: float) -> None:
    turned = np.asarray([[np.cos(np.radians(degrees)), np.sin(np.radians(degrees))]]) * 3
    assert embedding_summary.angles(turned, np.asarray([[0.2, 0.0]])) == pytest.approx([degrees], rel=1e-6)
