"""A process that sets up, then does one piece of work for every line on its standard input (Linux).

It answers on its standard output, a line of JSON each: first what there is to know after setting up, then for every
piece its seconds and whatever else it says, at the end its peak memory. While it waits it sleeps on the pipe.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

WARM_UP, WORK = "warm-up", "work"

Work = Callable[[], dict[str, Any]]


def serve(set_up: Callable[[], tuple[dict[str, Any], Work]]) -> None:
    """Set up, then work as often as asked. `set_up` returns what to tell, and the piece of work.

    The peak counts from the last warm-up on: loading is not in it, and of compiling only what it does not give back.
    """
    answers = _own_output()
    peak = Peak()
    facts, work = set_up()
    peak.reset()
    _tell(answers, facts)
    for line in sys.stdin:
        started = time.perf_counter()
        said = work()
        _tell(answers, {"seconds": time.perf_counter() - started, **said})
        if line.strip() == WARM_UP:
            peak.reset()
    _tell(answers, {"peak": peak.read(), "peak_of_process": peak.ever()})


class Peak:
    """The most memory this process held at once, in bytes, since the last `reset` and ever."""

    def __init__(self) -> None:
        self.before = 0

    def read(self) -> int:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])

    def ever(self) -> int:
        return max(self.before, self.read())

    def reset(self) -> None:
        """Count from what is held now; what was freed already, but not yet given back, is given back before."""
        self.before = self.ever()
        gc.collect()
        with contextlib.suppress(AttributeError):  # not in every C library
            ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def _own_output() -> Any:
    """Return standard output for the answers alone; what libraries print there goes to standard error from now on."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def _tell(answers: Any, said: dict[str, Any]) -> None:
    answers.write(json.dumps(said) + "\n")
    answers.flush()
