"""What the page says of a training run: time left, the losses, and why it failed."""

from __future__ import annotations

import contextlib
import re
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from demo.app.server import training_images, training_record
from demo.app.server.training_jobs import TrainingJob
from demo.app.server.training_record import Launch
from gm.training.output_dir import LOG

MAX_POINTS = 400  # of a curve; more take long to draw
_RECENT = 50  # steps whose mean time is that of the next ones
_ERROR = "error: "  # begins the line of a UserError
_OF_PYTHON = re.compile(r"[\w.]*(Error|Exception|Interrupt)\b.*")  # the last line of a traceback

Curve = list[tuple[float, float]]  # (step, loss)


def seconds_left(job: TrainingJob, launch: Launch, records: Sequence[dict[str, Any]]) -> float | None:
    """Return about how long a running job will take from now, None if that cannot be said yet.

    Sample images are part of it once two were written: the time between them is that of all that happens in it.
    """
    if not records:
        return None
    step = records[-1]["step"]
    times = [record["seconds"] for record in records[-_RECENT:] if isinstance(record.get("seconds"), (int, float))]
    per_step = statistics.median(times) if times else None
    preview_times = _times_of_previews(job, launch)
    if len(preview_times) > 1:
        (first, start), (last, end) = min(preview_times), max(preview_times)
        per_step = max((end - start) / (last - first), per_step or 0.0)
    return None if per_step is None else per_step * max(launch.total_step - step, 0)


def duration(seconds: float) -> str:
    """Return a length of time in words: "40 s", "5 min", "2 h 10 min"."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{max(round(seconds / 5) * 5, 5)} s"
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if minutes % 60 else f"{minutes // 60} h"


def losses(job: TrainingJob, records: Sequence[dict[str, Any]]) -> dict[str, Curve]:
    """Return the curves of the training loss, smoothed, and of the validation loss, if it is measured."""
    validation = training_record.read_validation(job.folder / LOG)
    curves = {
        "training": [(record["step"], record["loss_smoothed"]) for record in records],
        "validation": [*_before(validation), *((record["step"], record["validation_loss"]) for record in validation)],
    }
    return {name: thin_out(curve, MAX_POINTS) for name, curve in curves.items() if curve}


def _before(validation: Sequence[dict[str, Any]]) -> Curve:
    """Return the validation loss before training as the point of step 0, unless it has a record of its own."""
    before = validation[0].get("validation_loss_before") if validation and validation[0]["step"] else None
    return [(0, before)] if isinstance(before, (int, float)) else []


def thin_out(values: Sequence[Any], most: int) -> list[Any]:
    """Return at most `most` of the values, evenly spread, the first and the last among them."""
    if len(values) <= most:
        return list(values)
    return [values[round(k * (len(values) - 1) / (most - 1))] for k in range(most)]


def failure(job: TrainingJob, launch: Launch, records: Sequence[dict[str, Any]]) -> str:
    """Return why a job failed, in words that name the user's own files.

    The last line of a UserError or of a traceback says so; a process that wrote neither was ended from outside.
    """
    lines = [line.strip() for line in job.console_tail(200, launch.console_offset).splitlines()]
    for line in reversed(lines):
        if line.startswith(_ERROR):
            return _in_own_words(line.removeprefix(_ERROR), launch)
        if _OF_PYTHON.fullmatch(line):
            return f"the training program has an error, please report it: {_in_own_words(line, launch)}"
    if not launch.pid:
        return "the training could not be started; start it again"
    step = f" at step {records[-1]['step']:g}" if records else ""
    resume = "; Resume continues from its last saved state" if job.is_resumable else ""
    return (
        f"the training was ended from outside{step}, as when the machine has no memory left or is switched off{resume}"
    )


def _in_own_words(text: str, launch: Launch) -> str:
    """Return a message of the command line with the user's names of images, and without the server's folder."""
    folder = Path(str(launch.options.get("data_path", "")))
    if str(launch.options.get("data_path", "")):
        for stored, name in training_images.read_names(folder).items():
            text = text.replace(str(folder / stored), name).replace(stored, name)
        text = text.replace(f"--data_path {folder}", "the folder of the training images").replace(
            str(folder), "the folder of the training images"
        )
    return text


def _times_of_previews(job: TrainingJob, launch: Launch) -> list[tuple[int, float]]:
    """Return (step, time) of the sample images that this process has written."""
    times = []
    for path in job.previews():
        with contextlib.suppress(OSError):
            modified = path.stat().st_mtime
            if modified > (launch.queued or launch.started):
                times.append((int(path.stem.partition("_")[2]), modified))
    return [(step, modified) for step, modified in times if modified <= time.time()]
