"""Processes of training runs: each has a session of its own, and may have to wait for others first."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from filelock import FileLock

from demo.app.server import training_queue
from demo.app.server.training_queue import WAITING
from demo.app.server.training_record import Launch
from gm.errors import UserError

log = logging.getLogger("gm")

AT_ONCE = 1  # runs; a machine has memory for one
CONSOLE = "console.txt"  # standard output and error of the process
_SCRIPT = Path(__file__).resolve().parents[3] / "train_textual_inversion.py"
_QUEUE = Path(training_queue.__file__).resolve()
children: dict[int, subprocess.Popen] = {}  # of this process: only their parent can reap them


def as_flags(options: dict[str, Any]) -> list[str]:
    """Return options as arguments of a command; those without a value (None, an empty list) are left out."""
    flags: list[str] = []
    for name, value in options.items():
        if isinstance(value, (list, tuple)):
            flags += [f"--{name}", *map(str, value)] if value else []
        elif value is not None:
            flags.append(f"--{name}={value}")
    return flags


def start(folder: Path, launch: Launch, resume: str = "") -> None:
    """Write the job file and start the process, which may have to wait; UserError if that is not possible."""
    output = folder / CONSOLE
    try:
        with FileLock(folder.parent / ".queue.lock"):  # two at once would not count each other
            offset = output.stat().st_size if output.exists() else 0
            launch = dataclasses.replace(launch, pid=0, queued=time.time(), console_offset=offset, stop_requested=False)
            (folder / training_queue.PID).unlink(missing_ok=True)
            launch.write(folder)  # before the process: of a run without a record nobody would know
            child = _open(folder, launch, resume)
            children[child.pid] = child
    except OSError as error:
        raise UserError(
            f"cannot start the training {folder.name}: {error.strerror}; make room, or try again later"
        ) from error
    try:
        dataclasses.replace(launch, pid=child.pid).write(folder)
    except UserError as error:
        log.warning("%s", error)  # the process writes its id itself, too


def _open(folder: Path, launch: Launch, resume: str) -> subprocess.Popen:
    flags = as_flags(launch.options)
    flags += [f"--resume={resume}"] if resume else []
    command = [sys.executable, str(_SCRIPT), *(["--config", launch.config] if launch.config else []), *flags]
    queue = [sys.executable, "-I", str(_QUEUE), str(folder), str(AT_ONCE)]
    (folder / WAITING).unlink(missing_ok=True)
    if training_queue.count_earlier(folder) >= AT_ONCE:
        (folder / WAITING).touch()
    with (folder / CONSOLE).open("ab") as output:
        # A session of its own, so that the server's Ctrl-C and exit do not reach it.
        return subprocess.Popen(
            [*queue, *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def is_alive(pid: int, folder: Path) -> bool:
    """Return whether process `pid` is alive and is that of the job in `folder`."""
    if pid in children:
        return children[pid].poll() is None
    return training_queue.is_alive(pid, folder)


def request_stop(pid: int) -> None:
    """Ask a process to finish its step, save everything and exit."""
    with contextlib.suppress(ProcessLookupError):  # ended just now
        os.kill(pid, signal.SIGTERM)  # not SIGINT, which background processes may ignore


def console(folder: Path) -> bytes:
    """Return what the processes of the run in `folder` have written; nothing if that cannot be read."""
    with contextlib.suppress(OSError):
        if (folder / CONSOLE).is_file():
            return (folder / CONSOLE).read_bytes()
    return b""
