"""Two or more workers take turns, so that what else the machine does meanwhile meets all of them alike."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Any

from benchmarks.models import ROOT
from benchmarks.worker import WARM_UP, WORK
from gm.errors import UserError

_SHOWN = 2000  # characters of a crashed worker's last words


@dataclass
class Measured:
    """What one side did: an answer a piece of work, and what its processes told after setting up."""

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

    def ended(self, last: dict[str, Any]) -> None:
        """Take in what a process says when it ends."""
        self.peak = max(self.peak, last["peak"])
        self.peak_of_process = max(self.peak_of_process, last["peak_of_process"])

    def asdict(self) -> dict[str, Any]:
        return {"median": self.median, "seconds": self.seconds, **asdict(self)}


class Process:
    """A running worker. Leaving the `with` block ends it, whatever happened."""

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
        """Wait until it has set up; return what it tells then."""
        return self._answer()

    def ask(self, kind: str = WORK) -> dict[str, Any]:
        """Let it do one piece of work; return its answer."""
        assert self.process.stdin
        try:
            self.process.stdin.write(kind + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended; no answer will come
        return self._answer()

    def end(self) -> dict[str, Any]:
        """Let it end; return its peaks."""
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
        said = self.errors.read()[-_SHOWN:].strip()
        raise UserError(f"the worker {self.name!r} ended with code {code}; the end of what it said:", said)


def worker(module: str, *arguments: str) -> list[str]:
    """Return the command of a worker in this repository."""
    return [sys.executable, "-m", module, *arguments]


def alternate(
    sides: Mapping[str, Sequence[str]], *, rounds: int, pieces: int, warm_ups: int, together: bool
) -> dict[str, Measured]:
    """Let every side do `pieces` pieces of work in each of `rounds` rounds, in turn; `warm_ups` do not count.

    `together` keeps one process a side alive throughout; otherwise each turn is a process of its own, and warms up
    again, so that only one is alive at a time.
    """
    measured = {name: Measured() for name in sides}
    if not together:
        for number in range(rounds):
            for name, command in sides.items():
                _say(f"round {number + 1} of {rounds}: {name}")
                with Process(name, command) as process:
                    _warm(process, measured[name], warm_ups)
                    measured[name].answers += [process.ask() for _ in range(pieces)]
                    measured[name].ended(process.end())
        return measured
    with ExitStack() as stack:
        running = {}
        for name, command in sides.items():
            _say(f"{name} sets up")
            running[name] = stack.enter_context(Process(name, command))
            _warm(running[name], measured[name], warm_ups)
        _say(f"{rounds} rounds")
        for _ in range(rounds):
            for name, process in running.items():
                measured[name].answers += [process.ask() for _ in range(pieces)]
        for name, process in running.items():
            measured[name].ended(process.end())
    return measured


def pairwise(left: Measured, right: Measured) -> float:
    """Return the median of the ratios of what was measured one after the other."""
    return statistics.median(a / b for a, b in zip(left.seconds, right.seconds, strict=True))


def _warm(process: Process, measured: Measured, warm_ups: int) -> None:
    measured.facts.append(process.facts())
    for _ in range(warm_ups):
        process.ask(WARM_UP)


def _say(text: str) -> None:
    print(f"… {text}", file=sys.stderr, flush=True)
