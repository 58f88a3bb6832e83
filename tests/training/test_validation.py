"""Validation loss: best embedding, confidence interval, overfitting."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from gm import api
from gm.embeddings import io as embedding_io
from gm.training import setup, trainer
from gm.training.validation import ValidationHistory, ValidationLoss, change
from tests.project import Workshop


def test_change_and_its_confidence_interval() -> None:
    random = np.random.default_rng(0)
    within = 0
    for _ in range(400):
        before = random.standard_normal(50) * 3  # samples differ far more than their changes
        after = before + 0.2 + random.standard_normal(50)
        mean, low, high = change(before, after)
        assert low < mean < high
        assert mean == pytest.approx(after.mean() - before.mean())
        within += low < 0.2 < high
    assert 0.91 < within / 400 < 0.98  # 95 % of intervals hold the truth
    assert change(np.zeros(1), np.ones(1)) == (1.0, -np.inf, np.inf)


def test_history_knows_the_best_and_reports_overfitting_once() -> None:
    history = ValidationHistory([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    steps = [
        ([0.9, 1.9, 2.8], 0.5, "best"),
        ([0.9, 1.9, 2.9], 0.4, None),  # risen, but one sample alone may be chance
        ([1.2, 2.2, 3.2], 0.6, None),  # risen, and so has the training loss
        ([1.2, 2.2, 3.2], 0.4, "overfit"),
        ([1.3, 2.3, 3.3], 0.3, None),  # reported already
        ([0.5, 1.5, 2.5], 0.3, "best"),
        ([0.8, 1.8, 2.9], 0.2, "overfit"),
    ]
    for step, (losses, training_loss, verdict) in enumerate(steps, 1):
        assert history.add(step, np.array(losses), training_loss) == verdict, step
    assert (history.best_step, history.best) == (6, [0.5, 1.5, 2.5])
    assert history.first == [1.0, 2.0, 3.0]


def test_best_embedding_is_saved_and_overfitting_reported(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"num_validation_samples": 3, "validation_loss_interval": 2, "save_ckpt_interval": 2, "total_step": 8}
    toolkit = api.load(workshop.config(training={**options, "save_path": str(tmp_path / "run")}))
    # Before, and after steps 2, 4, 6 and 8: better, better, worse, worse.
    script = iter([3.0, 2.0, 1.0, 1.5, 1.6])
    monkeypatch.setattr(ValidationLoss, "losses", lambda *vectors: next(script) + np.arange(3.0))
    falling = iter(np.linspace(1, 0.1, 100))
    monkeypatch.setattr("gm.training.step_result.MovingAverage.value", property(lambda self: next(falling)))
    trainer.run(toolkit.model, setup.prepare(toolkit.config), toolkit.backend)
    place = tmp_path / "run"
    best, fourth = embedding_io.load(place / "smallest_best_ti.ckpt"), embedding_io.load(place / "smallest_4_ti.ckpt")
    assert np.array_equal(best.vectors["clip_l"], fourth.vectors["clip_l"])
    assert np.array_equal(best.vectors["clip_g"], fourth.vectors["clip_g"])
    assert best.metadata["step"] == 4
    assert embedding_io.load(place / "smallest_best_ti.safetensors").metadata == best.metadata
    out = capsys.readouterr().out
    warning = (
        "the validation loss rises while the training loss falls: overfitting; the best embedding, of step 4, is in"
    )
    assert out.count(warning) == 1
    assert f"step 6: {warning} smallest_best" in out
    assert "lower in 3 of 3 samples; best 2.0000 after step 4" in out
    records = [json.loads(line) for line in (place / "log.jsonl").read_text().splitlines()]
    assert [r["validation_loss_best_step"] for r in records if "validation_loss" in r] == [2, 4, 4, 4]


def test_validation_loss_does_not_depend_on_the_training_loss(workshop: Workshop) -> None:
    losses = []
    for loss in ({}, {"loss_type": "huber", "min_snr_gamma": 1.0, "noise_offset": 0.5, "min_timestep": 900}):
        toolkit = api.load(workshop.config(loss=loss))
        run = trainer.prepare(toolkit.model, setup.prepare(toolkit.config), toolkit.backend)
        validation = ValidationLoss(run.model, run.batches, 4, run.backend)
        losses.append(validation.losses(run.state.vector_arrays()))
    assert np.array_equal(*losses)
