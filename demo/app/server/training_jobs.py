"""Training runs in processes of their own, which outlive the page and the server that started them.

A job is its folder: `job.json` says how the process was launched, the rest is what training writes there. Of the runs
in one folder `training_process.AT_ONCE` are going on at a time, the others wait (`training_queue`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo.app.server import limits, training_process
from demo.app.server.training_queue import JOB_FILE, WAITING
from demo.app.server.training_record import Launch, read_log
from gm.embeddings.embedding import safe_filename
from gm.errors import UserError
from gm.training import checkpoint
from gm.training.embedding_files import BEST
from gm.training.output_dir import LOG, PREVIEWS, REPORT

MAX_WAITING = 20  # runs that wait or are going on, of all browsers
MAX_WAITING_OF_OWNER = 5
_PREVIEW = re.compile(r"step_(\d{1,12})\.png")
_MAX_TAIL = 20_000  # bytes of the console log that are shown


@dataclass(frozen=True)
class TrainingJob:
    """A training run that `start` began, in this process or another, now or earlier."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def launch(self) -> Launch:
        """The run's record; UserError if it is damaged."""
        return Launch.read(self.folder)

    @property
    def state(self) -> str:
        """State: queued, running, finished, stopped (on request) or failed; then `console_tail` may show the reason.

        Raises UserError as `launch` does.
        """
        launch = self.launch
        if training_process.is_alive(launch.pid, self.folder):
            return "queued" if (self.folder / WAITING).exists() else "running"
        last = self.records()[-1:]
        if last and last[0]["step"] >= launch.total_step:
            return "finished"
        if not launch.pid:
            return "failed"
        console = training_process.console(self.folder)[launch.console_offset :]
        killed = bool(last) and last[0].get("ended") is None  # no last record, so nothing was saved at the end
        return "failed" if killed or b"error:" in console or b"Traceback" in console else "stopped"

    @property
    def is_resumable(self) -> bool:
        """Whether `resume` can continue: the job is not running, not finished, and has saved a state."""
        return self.state in ("stopped", "failed") and self._has_checkpoint()

    def records(self) -> list[dict[str, Any]]:
        """Return the log's records of training steps: `step`, `loss`, `loss_smoothed`, `learning_rate` and more."""
        return read_log(self.folder / LOG)

    def previews(self) -> list[Path]:
        """Return the grids of preview images, ordered by step."""
        matches = {path: _PREVIEW.fullmatch(path.name) for path in (self.folder / PREVIEWS).glob("step_*.png")}
        steps = {path: int(match[1]) for path, match in matches.items() if match and path.is_file()}
        return sorted(steps, key=lambda path: steps[path])

    def embedding_files(self) -> list[Path]:
        """Return the embedding files, the newest first."""
        times: dict[Path, int] = {}
        for path in self.folder.glob("*_ti.ckpt"):
            with contextlib.suppress(FileNotFoundError):  # removed just now
                times[path] = path.stat().st_mtime_ns
        return sorted((path for path in times if path.is_file()), key=lambda path: times[path], reverse=True)

    def best_embedding_file(self) -> Path | None:
        """Return the embedding file with the lowest validation loss, else that of the most steps; None without any."""
        files = self.embedding_files()
        best = [path for path in files if file_step(path) == BEST]
        return best[0] if best else max(files, key=lambda path: int(file_step(path) or 0), default=None)

    def report(self) -> Path | None:
        """Return the HTML report, which training writes at its end."""
        path = self.folder / REPORT
        return path if path.is_file() else None

    def console_tail(self, lines: int = 20, offset: int = 0) -> str:
        """Return the last `lines` of the console log after `offset` bytes."""
        text = training_process.console(self.folder)[offset:][-_MAX_TAIL:].decode("utf-8", errors="replace")
        return "\n".join(re.split(r"[\r\n]+", text.strip())[-lines:])

    def stop(self) -> None:
        """Ask the process to finish its step, save everything and exit; a second call has no effect."""
        launch = self.launch
        if not launch.stop_requested and training_process.is_alive(launch.pid, self.folder):
            dataclasses.replace(launch, stop_requested=True).write(self.folder)
            training_process.request_stop(launch.pid)

    def resume(self) -> None:
        """Continue from the newest state; UserError if the job is running or has saved none, or as `start` does."""
        if self.state in ("queued", "running"):
            raise UserError(f"{self.name} is running; stop it first")
        if not self._has_checkpoint():
            raise UserError(f"{self.name} has no saved state to resume from; start a new run")
        launch = self.launch
        _check_number(self.folder.parent, launch.owner)
        training_process.start(self.folder, launch, "latest")

    def share(self, shared: bool) -> None:
        """Let every browser see the run, or its owner's alone."""
        dataclasses.replace(self.launch, shared=shared).write(self.folder)

    def _has_checkpoint(self) -> bool:
        return any(self.folder.glob(checkpoint.PATTERN))


def file_step(path: Path) -> str:
    """Return the step in the name of an embedding file, or `BEST`; "" for another name."""
    match = re.fullmatch(rf".*_(\d{{1,12}}|{BEST})_ti", path.stem)
    return match[1] if match else ""


def start(config: str, root: Path, options: dict[str, Any], owner: str = "", version: str = "") -> TrainingJob:
    """Start training with the YAML file `config` in a new folder of `root`; `options` are command-line options by name.

    A `config` of "" is that of the weights' family. `owner` is the id of the browser that may see the run, "" for
    everyone, `version` the name of the model on the page. Returns at once; the run may have to wait for others.
    UserError if too many are waiting, if the folder cannot be made, and as of `limits.check_training`. Other invalid
    options make the job fail.
    """
    if "total_step" not in options or "placeholder_token" not in options:
        raise UserError("a training run needs placeholder_token and total_step")
    limits.check_training(options)
    stem = safe_filename(str(options["placeholder_token"])) or "run"
    try:
        root.mkdir(parents=True, exist_ok=True)
        _check_number(root, owner)
        folder = _new_folder(root, stem)
    except OSError as error:
        raise UserError(f"cannot make a folder in {root}: {error.strerror}; choose another") from error
    launch = Launch(config, {**options, "save_path": str(folder)}, 0, time.time(), owner=owner, version=version)
    try:
        training_process.start(folder, launch)
    except UserError:
        with contextlib.suppress(OSError):
            folder.rmdir()  # if not even the record could be written
        raise
    return TrainingJob(folder)


def all_jobs(root: Path, browser: str | None = None) -> list[TrainingJob]:
    """Return the jobs in `root`, the newest first and damaged ones last; with a `browser`, those that it may see.

    Of a damaged record nobody knows the owner: every browser sees that it is there.
    """
    times: dict[TrainingJob, float] = {}
    for path in root.glob(f"*/{JOB_FILE}"):
        job = TrainingJob(path.parent)
        try:
            if browser is None or job.launch.is_visible_to(browser):
                times[job] = job.launch.started
        except UserError:
            times[job] = -1.0
    return sorted(times, key=lambda job: times[job], reverse=True)


def private_folders(root: Path, browser: str) -> list[Path]:
    """Return the folders of the jobs in `root` that the browser may not see."""
    visible = set(all_jobs(root, browser))
    return [job.folder for job in all_jobs(root) if job not in visible or _is_damaged(job)]


def _is_damaged(job: TrainingJob) -> bool:
    try:
        return not job.launch
    except UserError:
        return True


def _check_number(root: Path, owner: str) -> None:
    """Raise UserError if too many jobs in `root` are waiting or running, of this owner or in all."""
    owners = []
    for job in all_jobs(root):
        with contextlib.suppress(UserError):
            launch = job.launch
            if training_process.is_alive(launch.pid, job.folder):
                owners.append(launch.owner)
    if owner and owners.count(owner) >= MAX_WAITING_OF_OWNER:
        raise UserError(
            f"{owners.count(owner)} of your training runs are waiting or running; wait for one, or stop one"
        )
    if len(owners) >= MAX_WAITING:
        raise UserError(f"{len(owners)} training runs of all users are waiting; try again later")


def _new_folder(root: Path, stem: str) -> Path:
    """Make and return `root`/`stem`, or `stem`_2 and up if it already exists."""
    for number in itertools.count(1):
        folder = root / (stem if number == 1 else f"{stem}_{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            break
    return folder
