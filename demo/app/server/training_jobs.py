"""Training in processes of their own, found again by their folders: they go on whoever asked for them or has left."""

from __future__ import annotations

import contextlib
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

ORDER, CONSOLE = "order.json", "console.txt"  # how the run was started, and what it has said
_SCRIPT = Path(__file__).resolve().parents[3] / "train_textual_inversion.py"
_children: dict[int, subprocess.Popen] = {}  # those of this process, which nobody else can bury


@dataclass(frozen=True)
class Run:
    """A run that `start` began, now or earlier, here or in another process."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def order(self) -> dict[str, Any]:
        """Return how it was started: `config`, `options`, `pid`, and when, `started`, in seconds since 1970.

        `said` are the bytes of its console from before, `asked` tells whether it has been asked to stop.
        """
        found: dict[str, Any] = json.loads((self.folder / ORDER).read_text(encoding="utf-8"))
        return found

    @property
    def started(self) -> float:
        return float(self.order["started"])

    @property
    def state(self) -> str:
        """Return running, finished, stopped (as was asked), or failed; then its `tail` may say why."""
        order = self.order
        if _alive(order["pid"], self.folder):
            return "running"
        last = self.records()[-1:]
        if last and last[0]["step"] >= int(order["options"]["total_step"]):
            return "finished"
        said = self._said()[order["said"] :]  # by this process, not by one before
        cut_off = bool(last) and last[0]["ended"] is None  # killed, by the system perhaps, without a word
        return "failed" if cut_off or b"error:" in said or b"Traceback" in said else "stopped"

    @property
    def resumable(self) -> bool:
        """Whether `resume` can go on: it does not run, is not finished, and has saved a state."""
        return self.state in ("stopped", "failed") and any(self.folder.glob(checkpoint.PATTERN))

    def records(self) -> list[dict[str, Any]]:
        """Return what the run has logged of each step: `step`, `loss`, `loss_smoothed`, `learning_rate` and more."""
        found = []
        with contextlib.suppress(FileNotFoundError):
            for line in (self.folder / LOG).read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(ValueError):  # the line that is being written
                    found.append(json.loads(line))
        return [record for record in found if "loss" in record]  # others tell of words, or of what was held out

    def previews(self) -> list[Path]:
        """Return the sheets of previews, the first step's first."""
        sheets = (self.folder / PREVIEWS).glob("step_*.png")
        return sorted(sheets, key=lambda path: int(re.sub(r"\D", "", path.stem)))

    def learned(self) -> list[Path]:
        """Return the embedding files, the newest first."""
        found = self.folder.glob("*_ti.ckpt")
        return sorted(found, key=lambda path: path.stat().st_mtime_ns, reverse=True)

    def report(self) -> Path | None:
        """Return the page that shows how it went, once it has ended."""
        path = self.folder / REPORT
        return path if path.is_file() else None

    def tail(self, lines: int = 20) -> str:
        """Return the last `lines` of what the run has said."""
        said = self._said().decode("utf-8", errors="replace")
        return "\n".join(re.split(r"[\r\n]+", said.strip())[-lines:])

    def stop(self) -> None:
        """Let it finish its step, save everything and end; asked once more, nothing happens."""
        order = self.order
        if not order["asked"] and _alive(order["pid"], self.folder):
            _write(self.folder, {**order, "asked": True})
            os.kill(order["pid"], signal.SIGTERM)  # SIGINT may be ignored by what is started in the background

    def _said(self) -> bytes:
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / CONSOLE).read_bytes()
        return b""

    def resume(self) -> None:
        """Go on from the newest state; UserError if it runs, or has saved none."""
        if self.state == "running":
            raise UserError(f"{self.name} is running; stop it first")
        if not list(self.folder.glob(checkpoint.PATTERN)):
            raise UserError(f"{self.name} has saved no state to go on from; start it anew")
        order = self.order
        _spawn(self.folder, order["config"], {**order["options"], "resume": "latest"}, order["started"])


def start(config: str, root: Path, options: dict[str, Any]) -> Run:
    """Start a run of the YAML file `config` in a new folder of `root`; `options` are flags by their names.

    Returns at once; UserError if the folder cannot be made. A mistake in the options makes the run fail.
    """
    if "total_step" not in options or "placeholder_token" not in options:
        raise UserError("a run needs a word, placeholder_token, and a number of steps, total_step")
    stem = safe_filename(str(options["placeholder_token"])) or "run"
    try:
        root.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            folder = root / (stem if number == 1 else f"{stem}_{number}")
            with contextlib.suppress(FileExistsError):
                folder.mkdir()
                break
    except OSError as error:
        raise UserError(f"cannot make a folder in {root}: {error.strerror}; choose another") from error
    _spawn(folder, config, {**options, "save_path": str(folder)}, time.time())
    return Run(folder)


def all_runs(root: Path) -> list[Run]:
    """Return the runs that were started in `root`, the newest first."""
    found = [Run(path.parent) for path in root.glob(f"*/{ORDER}")]
    return sorted(found, key=lambda run: run.started, reverse=True)


def _spawn(folder: Path, config: str, options: dict[str, Any], started: float) -> None:
    flags = [f"--{name}={value}" for name, value in options.items()]
    command = [sys.executable, str(_SCRIPT), "--config", config, *flags]
    with (folder / CONSOLE).open("ab") as console:
        said = console.tell()
        # In a session of its own: it neither hears the server's Ctrl-C nor ends with it.
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT, start_new_session=True
        )
    _children[child.pid] = child
    kept = {name: value for name, value in options.items() if name != "resume"}
    order = {"config": config, "options": kept, "pid": child.pid, "started": started, "said": said, "asked": False}
    _write(folder, order)


def _write(folder: Path, order: dict[str, Any]) -> None:
    with atomic_io.atomic_write(folder / ORDER) as temporary:
        temporary.write_text(json.dumps(order, indent=1), encoding="utf-8")


def _alive(pid: int, folder: Path) -> bool:
    """Return whether process `pid` runs and is the one that writes to `folder`: numbers are given away again."""
    if pid in _children:
        return _children[pid].poll() is None
    try:
        said = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return _exists(pid) and not Path("/proc/self").exists()  # a system without /proc
    return f"--save_path={folder}".encode() in said


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True
