"""Starts a training process once few enough earlier runs are going on: training_queue.py FOLDER AT_ONCE COMMAND….

A program of its own, which waits in the place of the training process and then becomes it, so that queued runs, too,
outlive the server that started them. It imports the standard library only. Each run looks at the earlier ones alone,
whose records are beside its own: no lock is held, and a run that has died counts no more.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

JOB_FILE = "job.json"
WAITING = "waiting"  # a file in the folder of a run that has not begun
PID = "pid"  # a file with the process id, for a record that has none because the server ended too early
_SECONDS = 1.0  # between two looks


def count_earlier(folder: Path) -> int:
    """Return how many runs beside `folder` that were queued before it are waiting or running."""
    rank = _queued(folder), folder.name
    others = (path.parent for path in folder.parent.glob(f"*/{JOB_FILE}") if path.parent != folder)
    return sum((_queued(other), other.name) < rank and is_alive(_pid(other), other) for other in others)


def is_alive(pid: int, folder: Path) -> bool:
    """Return whether process `pid` is alive and writes to `folder`; another process may have reused the id."""
    if pid <= 0:
        return False
    try:
        command_line = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return _exists(pid) and not Path("/proc/self").exists()  # a system without /proc
    return f"--save_path={folder}".encode(errors="surrogateescape") in command_line


def read_pid(folder: Path) -> int:
    """Return the process id that a run's own process has written, 0 if none has."""
    try:
        return int((folder / PID).read_text())
    except (OSError, ValueError):
        return 0


def main(folder: Path, at_once: int, command: Sequence[str]) -> None:
    """Wait until fewer than `at_once` earlier runs are left, then become `command`."""
    (folder / PID).write_text(str(os.getpid()))
    while count_earlier(folder) >= at_once:
        time.sleep(_SECONDS)
    (folder / WAITING).unlink(missing_ok=True)
    os.execv(command[0], list(command))


def _queued(folder: Path) -> float:
    """Return when a run was queued; a run whose record is damaged comes last."""
    record = _record(folder)
    queued = record.get("queued", record.get("started"))
    return float(queued) if isinstance(queued, (int, float)) else float("inf")


def _pid(folder: Path) -> int:
    pid = _record(folder).get("pid")
    return pid if isinstance(pid, int) and pid > 0 else read_pid(folder)


def _record(folder: Path) -> dict:
    try:
        record = json.loads((folder / JOB_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
