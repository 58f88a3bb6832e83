"""Training runs in processes of their own, which outlive the page and the server that started them.

A job is its folder: `job.json` says how the process was launched, the rest is what training writes there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gm.embeddings.embedding import safe_filename
from gm.errors import UserError
from gm.runtime import atomic_io
from gm.training import checkpoint
from gm.training.output_dir import LOG, PREVIEWS, REPORT

JOB_FILE = "job.json"
CONSOLE = "console.txt"  # standard output and error of the process
_SCRIPT = Path(__file__).resolve().parents[3] / "train_textual_inversion.py"
_children: dict[int, subprocess.Popen] = {}  # of this process: only their parent can reap them


@dataclass(frozen=True)
class Launch:
    """How a job's process was started last: YAML file, command-line options, process id, and time of the first start.

    `console_offset` is the size of the console log before this process. `stop_requested`: SIGTERM has been sent.
    """

    config: str
    options: dict[str, Any]
    pid: int
    started: float  # seconds since 1970
    console_offset: int = 0
    stop_requested: bool = False

    @classmethod
    def read(cls, folder: Path) -> Launch:
        return cls(**json.loads((folder / JOB_FILE).read_text(encoding="utf-8")))

    def write(self, folder: Path) -> None:
        with atomic_io.atomic_write(folder / JOB_FILE) as temporary:
            temporary.write_text(json.dumps(dataclasses.asdict(self), indent=1), encoding="utf-8")


@dataclass(frozen=True)
class TrainingJob:
    """A training run that `start` began, in this process or another, now or earlier."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def launch(self) -> Launch:
        return Launch.read(self.folder)

    @property
    def state(self) -> str:
        """State: running, finished, stopped (on request) or failed; then `console_tail` may show the reason."""
        launch = self.launch
        if _is_alive(launch.pid, self.folder):
            return "running"
        last = self.records()[-1:]
        if last and last[0]["step"] >= int(launch.options["total_step"]):
            return "finished"
        console = self._console()[launch.console_offset :]
        killed = bool(last) and last[0].get("ended") is None  # no last record, so nothing was saved at the end
        return "failed" if killed or b"error:" in console or b"Traceback" in console else "stopped"

    @property
    def is_resumable(self) -> bool:
        """Whether `resume` can continue: the job is not running, not finished, and has saved a state."""
        return self.state in ("stopped", "failed") and self._has_checkpoint()

    def records(self) -> list[dict[str, Any]]:
        """Return the log's records of training steps: `step`, `loss`, `loss_smoothed`, `learning_rate` and more."""
        records = []
        with contextlib.suppress(FileNotFoundError):
            for line in (self.folder / LOG).read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(ValueError):  # the line that is being written
                    records.append(json.loads(line))
        return [record for record in records if "loss" in record]  # others hold nearest tokens or validation losses

    def previews(self) -> list[Path]:
        """Return the grids of preview images, ordered by step."""
        grids = (self.folder / PREVIEWS).glob("step_*.png")
        return sorted(grids, key=lambda path: int(re.sub(r"\D", "", path.stem)))

    def embedding_files(self) -> list[Path]:
        """Return the embedding files, the newest first."""
        return sorted(self.folder.glob("*_ti.ckpt"), key=lambda path: path.stat().st_mtime_ns, reverse=True)

    def report(self) -> Path | None:
        """Return the HTML report, which training writes at its end."""
        path = self.folder / REPORT
        return path if path.is_file() else None

    def console_tail(self, lines: int = 20) -> str:
        """Return the last `lines` of the console log."""
        text = self._console().decode("utf-8", errors="replace")
        return "\n".join(re.split(r"[\r\n]+", text.strip())[-lines:])

    def stop(self) -> None:
        """Ask the process to finish its step, save everything and exit; a second call has no effect."""
        launch = self.launch
        if not launch.stop_requested and _is_alive(launch.pid, self.folder):
            dataclasses.replace(launch, stop_requested=True).write(self.folder)
            os.kill(launch.pid, signal.SIGTERM)  # not SIGINT, which background processes may ignore

    def resume(self) -> None:
        """Continue from the newest state; UserError if the job is running or has saved none."""
        if self.state == "running":
            raise UserError(f"{self.name} is running; stop it first")
        if not self._has_checkpoint():
            raise UserError(f"{self.name} has no saved state to resume from; start a new run")
        launch = self.launch
        _spawn(self.folder, launch.config, {**launch.options, "resume": "latest"}, launch.started)

    def _has_checkpoint(self) -> bool:
        return any(self.folder.glob(checkpoint.PATTERN))

    def _console(self) -> bytes:
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / CONSOLE).read_bytes()
        return b""


def start(config: str, root: Path, options: dict[str, Any]) -> TrainingJob:
    """Start training with the YAML file `config` in a new folder of `root`; `options` are command-line options by name.

    A `config` of "" is that of the weights' family. Returns at once; UserError if the folder cannot be made. Invalid
    options make the job fail.
    """
    if "total_step" not in options or "placeholder_token" not in options:
        raise UserError("a training run needs placeholder_token and total_step")
    stem = safe_filename(str(options["placeholder_token"])) or "run"
    try:
        root.mkdir(parents=True, exist_ok=True)
        folder = _new_folder(root, stem)
    except OSError as error:
        raise UserError(f"cannot make a folder in {root}: {error.strerror}; choose another") from error
    _spawn(folder, config, {**options, "save_path": str(folder)}, time.time())
    return TrainingJob(folder)


def all_jobs(root: Path) -> list[TrainingJob]:
    """Return the jobs in `root`, the newest first."""
    jobs = [TrainingJob(path.parent) for path in root.glob(f"*/{JOB_FILE}")]
    return sorted(jobs, key=lambda job: job.launch.started, reverse=True)


def _new_folder(root: Path, stem: str) -> Path:
    """Make and return `root`/`stem`, or `stem`_2 and up if it already exists."""
    for number in itertools.count(1):
        folder = root / (stem if number == 1 else f"{stem}_{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            break
    return folder


def as_flags(options: dict[str, Any]) -> list[str]:
    """Return options as arguments of a command; those without a value (None, an empty list) are left out."""
    flags: list[str] = []
    for name, value in options.items():
        if isinstance(value, (list, tuple)):
            flags += [f"--{name}", *map(str, value)] if value else []
        elif value is not None:
            flags.append(f"--{name}={value}")
    return flags


def _spawn(folder: Path, config: str, options: dict[str, Any], started: float) -> None:
    """Start the training process and write the job file."""
    command = [sys.executable, str(_SCRIPT), *(["--config", config] if config else []), *as_flags(options)]
    with (folder / CONSOLE).open("ab") as console:
        offset = console.tell()
        # A session of its own, so that the server's Ctrl-C and exit do not reach it.
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT, start_new_session=True
        )
    _children[child.pid] = child
    options = {name: value for name, value in options.items() if name != "resume"}
    Launch(config, options, child.pid, started, console_offset=offset).write(folder)


def _is_alive(pid: int, folder: Path) -> bool:
    """Return whether process `pid` is alive and writes to `folder`; another process may have reused the id."""
    if pid in _children:
        return _children[pid].poll() is None
    try:
        command_line = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return _exists(pid) and not Path("/proc/self").exists()  # a system without /proc
    return f"--save_path={folder}".encode() in command_line


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True
