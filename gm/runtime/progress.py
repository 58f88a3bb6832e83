"""One line on the terminal that is written over as work goes on."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from gm.runtime.duration import format_duration

_SECONDS_BETWEEN = {True: 0.1, False: 10.0}  # by whether a person watches: a log file needs no animation


class Line:
    """A progress line; into a file it is written every ten seconds, each time on a line of its own."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stdout
        self.alive, self.shown_at, self.width = self.stream.isatty(), float("-inf"), 0

    def show(self, text: str, last: bool = False) -> None:
        """Show `text` if enough time has gone by since the last one; always if it is the `last`."""
        now = time.monotonic()
        if not last and now - self.shown_at < _SECONDS_BETWEEN[self.alive]:
            return
        self.shown_at = now
        self.stream.write(f"\r{text:<{self.width}}" if self.alive else f"{text}\n")
        self.width = len(text)
        if last:
            self.end()
        self.stream.flush()

    def say(self, text: str) -> None:
        """Print `text` on a line of its own, leaving the progress line complete above it."""
        self.end()
        print(text, file=self.stream, flush=True)

    def end(self) -> None:
        """Leave the progress line."""
        if self.alive and self.width:
            self.stream.write("\n")
        self.width = 0


def bar(done: int, total: int, seconds: float, width: int = 30) -> str:
    """Draw how much of `total` is done, `seconds` after the first was, and the time that is left at that pace.

    The first step does not count: it holds the compilation of the graph.
    """
    full = width * done // total
    left = f"{format_duration(seconds / (done - 1) * (total - done))} left" if done > 1 else "…"
    return f"[{'#' * full}{'.' * (width - full)}] {done}/{total}  {left}"
