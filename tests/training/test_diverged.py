"""Divergence: training stops, the last finite vectors are saved, the cause is named."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from gm.embeddings import io as embedding_io
from gm.errors import UserError
from gm.runtime import float_status
from gm.runtime.backend import Backend
from gm.training import checkpoint, divergence, embedding_files, setup, trainer
from gm.training.batches import BatchLoader
from gm.training.optimizer import create_train_state
from gm.training.step_result import StepResult
from gm.training.train_step import Batch
from tests.project import Workshop, whole_run

ROOT = Path(__file__).resolve().parents[2]
EAGER = Backend("CPU", graph=False, dtype=ms.float32)


def spoil_batches(monkeypatch: pytest.MonkeyPatch, good_steps: int) -> None:
    """Put infinite values into every batch after the first `good_steps`."""
    original = BatchLoader.batch

    def batch(self: BatchLoader, step: int) -> Batch:
        good = original(self, step)
        return good if step < good_steps else good._replace(x=Tensor(good.x.asnumpy() * np.float32(np.inf)))

    monkeypatch.setattr(BatchLoader, "batch", batch)


def test_too_many_skipped_steps_end_the_run_with_the_last_finite_vectors(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"total_step": 50, "max_skipped_steps": 4, "checkpointing_steps": 1, "save_path": str(tmp_path / "bad")}
    short = whole_run(workshop.config(training={"total_step": 3, "save_path": str(tmp_path / "good")}))
    spoil_batches(monkeypatch, 3)
    with pytest.raises(UserError, match=r"step 7 is the 4th in a row without a finite loss, though .*smallest_7_ti"):
        whole_run(workshop.config(training=options))
    found, good = embedding_io.load(tmp_path / "bad" / "smallest_7_ti.ckpt"), embedding_io.load(short)
    # The third update followed the last good step, but no good step followed it.
    assert np.isfinite(found.vectors["clip_l"]).all()
    assert np.linalg.norm(found.vectors["clip_l"] - good.vectors["clip_l"]) < 0.02 * np.linalg.norm(
        good.vectors["clip_l"]
    )
    latest = checkpoint.find("latest", tmp_path / "bad")
    assert latest
    assert latest.step == 6  # the step that ended it left none
    records = [json.loads(line) for line in (tmp_path / "bad" / "log.jsonl").read_text().splitlines()]
    records = [r for r in records if "loss" in r]
    assert [r["skipped"] for r in records] == [0, 0, 0, 1, 2, 3, 4]
    assert [r["finite"] for r in records] == [True] * 3 + [False] * 4


def test_update_that_makes_vectors_infinite_is_reverted(workshop: Workshop, tmp_path: Path) -> None:
    options = {"total_step": 50, "max_skipped_steps": 3, "save_path": str(tmp_path / "run")}
    config = workshop.config(training=options)
    training = dataclasses.replace(config.training, learning_rate=3e38)  # more than a user may choose
    training_setup = setup.prepare(dataclasses.replace(config, training=training))
    start = trainer.prepare(workshop.model, training_setup, EAGER).state.vector_arrays()
    with pytest.raises(UserError, match="in a row without a finite"):
        whole_run(training_setup.config)
    last = max((tmp_path / "run").glob("*_ti.ckpt"))
    assert np.array_equal(embedding_io.load(last).vectors["clip_l"], start["clip_l"])


@pytest.mark.parametrize(
    ("name", "saturates", "remedy"),
    [("CPU", False, "float32"), ("Ascend", False, "bfloat16 or float32"), ("Ascend", True, "float32")],
)
def test_the_way_out_of_float16_is_a_precision_that_the_device_has(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, name: str, saturates: bool, remedy: str
) -> None:
    monkeypatch.setattr(float_status, "saturates", lambda: saturates)
    state = create_train_state({"clip_l": np.zeros((1, 16), np.float32)}, half=True)
    result = StepResult(5, 5, 0.5, 0.5, False, 5, 0.0, None, 0.0)
    cause = divergence.cause(workshop.model, state, result, Backend(name, graph=False, dtype=ms.float16))
    symptom = "with a finite loss but no finite gradient, in float16 at a loss scale of 65536"
    assert cause == f"{symptom}: use --precision {remedy}"


def nan(network: ms.nn.Cell) -> None:
    weight = next(p for p in network.get_parameters() if p.name.endswith("weight"))
    weight.set_data(Tensor(weight.asnumpy() * np.float32(np.nan)))


def test_images_that_the_vae_encodes_to_nan_are_refused_before_training(workshop: Workshop, tmp_path: Path) -> None:
    options = {"total_step": 9, "max_skipped_steps": 2, "save_path": str(tmp_path / "run")}
    with pytest.raises(UserError, match=r"the VAE encodes .*\.(png|jpg) to values .* not finite; give .* with --vae"):
        whole_run(workshop.config(training=options), lambda model: nan(model.first_stage_model))
    assert not list(tmp_path.rglob("*_ti.ckpt"))


def test_cause_is_named(workshop: Workshop, tmp_path: Path) -> None:
    options = {"total_step": 9, "max_skipped_steps": 2, "save_path": str(tmp_path / "run")}
    message = r"model\.diffusion_model\..* of the weights is not finite; convert or download them"
    with pytest.raises(UserError, match=message):
        whole_run(workshop.config(training=options), lambda model: nan(model.unet))
    training_setup = setup.prepare(workshop.config(training=options))
    assert (tmp_path / "run" / embedding_files.file_name(training_setup, training_setup.concepts[0], 2)).exists()
    assert os.listdir(tmp_path / "run") != []
