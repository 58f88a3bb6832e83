"""What the page says of a run: time left, losses, why it failed, and the embedding files of its steps."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from demo.app.server import training_images, training_jobs, training_process, training_progress
from demo.app.server.training_jobs import TrainingJob
from demo.app.server.training_record import Launch


def make_job(folder: Path, records: list[dict[str, Any]], console: str = "", **options: Any) -> TrainingJob:
    folder.mkdir(parents=True)
    options = {"placeholder_token": "<toy>", "total_step": 100, **options}
    Launch("c.yaml", options, 999_999_999, 1000.0, queued=1000.0).write(folder)
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / training_process.CONSOLE).write_text(console)
    return TrainingJob(folder)


def step(number: int, **values: Any) -> dict[str, Any]:
    return {"step": number, "loss": 1.0 / number, "loss_smoothed": 2.0 / number, "seconds": 0.5, **values}


def test_time_left_is_that_of_the_steps_and_the_sample_images(tmp_path: Path) -> None:
    job = make_job(tmp_path / "run", [])
    assert training_progress.seconds_left(job, job.launch, []) is None
    records = [step(1, seconds=60.0), *(step(number) for number in range(2, 41))]
    assert training_progress.seconds_left(job, job.launch, records) == 0.5 * 60  # the first step compiled
    previews = job.folder / "previews"
    previews.mkdir()
    for number, modified in ((0, 1100), (20, 1140), (40, 1180), (60, 900)):  # the last is of an earlier process
        (previews / f"step_{number}.png").touch()
        os.utime(previews / f"step_{number}.png", (modified, modified))
    assert training_progress.seconds_left(job, job.launch, records) == 2.0 * 60


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(1, "5 s"), (42, "40 s"), (89, "90 s"), (130, "2 min"), (3600, "1 h"), (2 * 3600 + 610, "2 h 10 min")],
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert training_progress.duration(seconds) == words


def test_both_losses_are_curves_of_a_bounded_length(tmp_path: Path) -> None:
    validation = [{"step": number, "validation_loss": 0.1} for number in (0, 500, 1000)]
    job = make_job(tmp_path / "run", [*(step(number) for number in range(1, 1001)), *validation, {"step": 2}])
    curves = training_progress.losses(job, job.records())
    assert curves["validation"] == [(0, 0.1), (500, 0.1), (1000, 0.1)]
    training = curves["training"]
    assert len(training) == training_progress.MAX_POINTS
    assert (training[0], training[-1]) == ((1, 2.0), (1000, 0.002))
    late = make_job(tmp_path / "late", [{"step": 9, "validation_loss": 0.1, "validation_loss_before": 0.2}])
    assert training_progress.losses(late, [])["validation"] == [(0, 0.2), (9, 0.1)]
    assert "validation" not in training_progress.losses(make_job(tmp_path / "other", []), job.records())


def test_a_failure_is_told_with_the_names_of_the_user(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    (images / training_images.NAMES).write_text('{"0a1b.png": "cat.png"}')
    console = f"error: earlier\nloading\nerror: the center crop of {images}/0a1b.png is masked as a whole; crop it\n"
    job = make_job(tmp_path / "run", [], console, data_path=str(images))
    assert job.state == "failed"
    text = training_progress.failure(job, job.launch, [])
    assert text == "the center crop of cat.png is masked as a whole; crop it"
    job = make_job(tmp_path / "gone", [], f"error: --data_path {images} does not exist; give it", data_path=str(images))
    assert training_progress.failure(job, job.launch, []) == "the folder of the training images does not exist; give it"


def test_a_failure_of_the_program_or_from_outside_is_told_as_such(tmp_path: Path) -> None:
    console = 'Traceback (most recent call last):\n  File "x.py", line 1\nRuntimeError: Out of memory\n\n'
    job = make_job(tmp_path / "run", [], console)
    text = training_progress.failure(job, job.launch, [])
    assert text == "the training program has an error, please report it: RuntimeError: Out of memory"
    records = [step(number) for number in range(1, 8)]
    killed = make_job(tmp_path / "killed", records, "error: of an earlier process\n")
    Launch("c.yaml", killed.launch.options, 999_999_999, 1.0, console_offset=29).write(killed.folder)
    assert killed.state == "failed"
    text = training_progress.failure(killed, killed.launch, records)
    assert text.startswith("the training was ended from outside at step 7, as when the machine has no memory left")
    assert "Resume" not in text
    (killed.folder / "state_5.ckpt").touch()
    assert training_progress.failure(killed, killed.launch, records).endswith(
        "Resume continues from its last saved state"
    )


def test_the_best_embedding_file_is_by_validation_else_by_steps(tmp_path: Path) -> None:
    job = make_job(tmp_path / "run", [])
    assert job.best_embedding_file() is None
    for name in ("m_1000_ti.ckpt", "m_500_ti.ckpt"):
        (job.folder / name).touch()
    best = job.best_embedding_file()
    assert best is not None
    assert (best.name, training_jobs.file_step(best)) == ("m_1000_ti.ckpt", "1000")
    (job.folder / "m_best_ti.ckpt").touch()
    os.utime(job.folder / "m_best_ti.ckpt", (1, 1))
    best = job.best_embedding_file()
    assert best is not None
    assert training_jobs.file_step(best) == "best"
    assert training_jobs.file_step(Path("other.ckpt")) == ""
