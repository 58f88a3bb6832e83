"""Worker processes that take turns, so that other load on the machine affects all of them alike (Linux).

A worker sets up, then does one piece of work for every line on its standard input. It answers on its standard output
with one line of JSON each: facts after setting up, then for every piece its seconds and results, at the end its peak
memory. While it waits it sleeps on the pipe.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.cases import ROOT
from gm.errors import UserError

WARM_UP = "warm-up"
WORK = "work"
_SHOWN = 2000  # characters of a crashed worker's standard error in the message

Work = Callable[[], dict[str, Any]]


@dataclass
class Measurement:
    """Answers of one side, one per piece of work, and the facts that its processes reported after setting up."""

    answers: list[dict[str, Any]] = field(default_factory=list)
    facts: list[dict[str, Any]] = field(default_factory=list)
    peak: int = 0  # bytes while working
    peak_of_process: int = 0

    @property
    def seconds(self) -> list[float]:
        return [answer["seconds"] for answer in self.answers]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def add_peaks(self, last: dict[str, Any]) -> None:
        """Add the peaks that a process reports when it ends."""
        self.peak = max(self.peak, last["peak"])
        self.peak_of_process = max(self.peak_of_process, last["peak_of_process"])

    def asdict(self) -> dict[str, Any]:
        return {"median": self.median, "seconds": self.seconds, **asdict(self)}


class Process:
    """A running worker. Leaving the `with` block ends it."""

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self.name = name
        self.errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - `__exit__`
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True
        )

    def __enter__(self) -> Process:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.errors):
            if stream:
                stream.close()

    def facts(self) -> dict[str, Any]:
        """Wait until it has set up; return its facts."""
        return self._answer()

    def work(self, kind: str = WORK) -> dict[str, Any]:
        """Do one piece of work; return its answer."""
        assert self.process.stdin
        try:
            self.process.stdin.write(kind + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # the process has ended; `_answer` reports it
        return self._answer()

    def end(self) -> dict[str, Any]:
        """End the process; return its peaks."""
        assert self.process.stdin
        self.process.stdin.close()
        last = self._answer()
        self.process.wait()
        return last

    def _answer(self) -> dict[str, Any]:
        """Return the next answer; UserError with the end of its standard error if it has crashed."""
        assert self.process.stdout
        line = self.process.stdout.readline()
        if line:
            return json.loads(line)
        code = self.process.wait()
        self.errors.seek(0)
        output = self.errors.read()[-_SHOWN:].strip()
        raise UserError(f"the worker {self.name!r} ended with code {code}; the end of its output:", output)


def worker(module: str, *arguments: str) -> list[str]:
    """Return the command of a worker in this repository."""
    return [sys.executable, "-m", module, *arguments]


def alternate(
    sides: Mapping[str, Sequence[str]], *, rounds: int, pieces: int, warm_ups: int, together: bool
) -> dict[str, Measurement]:
    """Run `pieces` pieces of work of every side in each of `rounds` rounds, in turns, after uncounted `warm_ups`.

    With `together` one process per side lives throughout; otherwise each turn starts a process, which warms up again,
    so that only one lives at a time.
    """
    measured = {name: Measurement() for name in sides}
    if not together:
        for number in range(rounds):
            for name, command in sides.items():
                _print(f"round {number + 1} of {rounds}: {name}")
                with Process(name, command) as process:
                    _warm(process, measured[name], warm_ups)
                    measured[name].answers += [process.work() for _ in range(pieces)]
                    measured[name].add_peaks(process.end())
        return measured
    with ExitStack() as stack:
        running = {}
        for name, command in sides.items():
            _print(f"{name} sets up")
            running[name] = stack.enter_context(Process(name, command))
            _warm(running[name], measured[name], warm_ups)
        _print(f"{rounds} rounds")
        for _ in range(rounds):
            for name, process in running.items():
                measured[name].answers += [process.work() for _ in range(pieces)]
        for name, process in running.items():
            measured[name].add_peaks(process.end())
    return measured


def median_of_ratios(left: Measurement, right: Measurement) -> float:
    """Return the median of the ratios of neighbouring measurements."""
    return statistics.median(a / b for a, b in zip(left.seconds, right.seconds, strict=True))


def _warm(process: Process, measured: Measurement, warm_ups: int) -> None:
    measured.facts.append(process.facts())
    for _ in range(warm_ups):
        process.work(WARM_UP)


def _print(text: str) -> None:
    print(f"… {text}", file=sys.stderr, flush=True)


def serve(set_up: Callable[[], tuple[dict[str, Any], Work]]) -> None:
    """Set up, then do one piece of work per line of standard input. `set_up` returns the facts and the work.

    The peak counts from the last warm-up on: it excludes loading, and the memory that compiling has released.
    """
    answers = _redirect_output()
    peak = Peak()
    facts, work = set_up()
    peak.reset()
    _send(answers, facts)
    for line in sys.stdin:
        started = time.perf_counter()
        result = work()
        _send(answers, {"seconds": time.perf_counter() - started, **result})
        if line.strip() == WARM_UP:
            peak.reset()
    _send(answers, {"peak": peak.read(), "peak_of_process": peak.ever()})


class Peak:
    """Peak resident memory of this process in bytes, since the last `reset` and ever."""

    def __init__(self) -> None:
        self.before = 0

    def read(self) -> int:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])

    def ever(self) -> int:
        return max(self.before, self.read())

    def reset(self) -> None:
        """Start counting at the current memory, after freed memory has been returned to the system."""
        self.before = self.ever()
        gc.collect()
        with contextlib.suppress(AttributeError):  # not in every C library
            ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def _redirect_output() -> Any:
    """Return standard output for the answers; from now on libraries print to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def _send(answers: Any, message: dict[str, Any]) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()
