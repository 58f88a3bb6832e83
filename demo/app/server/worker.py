"""One thread that owns the models; what is asked of it waits in line.

A model has one set of graphs and one memory, so two people at once would only slow each other down. A task outlives
the page that asked for it, and shows what it has done so far to whoever looks.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

from gm.errors import UserError

log = logging.getLogger("gm")

ENDED = ("done", "failed", "cancelled")


class Task:
    """Some work, asked for once: `events` is what it has yielded so far.

    `state` is waiting, running, done, failed (then `error` says why, in one line) or cancelled.
    """

    def __init__(self, title: str, work: Callable[[], Iterator[Any]], worker: Worker) -> None:
        self.title, self.state, self.error = title, "waiting", ""
        self.events: list[Any] = []
        self._work, self._worker = work, worker
        self._cancelled, self._ended = threading.Event(), threading.Event()

    @property
    def place(self) -> int:
        """How many tasks are before this one; 0 when it runs or has ended."""
        line = self._worker.line
        return line.index(self) if self in line else 0

    def cancel(self) -> None:
        """End it at its next step, or at once if it still waits; what it has done stays."""
        self._cancelled.set()
        if self._worker.withdraw(self):
            self.state = "cancelled"
            self._ended.set()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until it has ended, `seconds` at most; return whether it has."""
        return self._ended.wait(seconds)

    def run(self) -> None:
        """Do the work; called by the worker alone."""
        try:
            self.state = "running"
            self._walk()
            self.state = "cancelled" if self._cancelled.is_set() else "done"
        except UserError as error:
            self.state, self.error = "failed", str(error)
        except Exception as error:
            log.exception("%s failed", self.title)
            self.state, self.error = "failed", f"{type(error).__name__}: {error}; the log of the server has more"
        finally:
            self._ended.set()

    def _walk(self) -> None:
        for event in self._work():
            self.events.append(event)
            if self._cancelled.is_set():
                return  # which closes the work where it stands


class Worker:
    """Does one task after the other, first come, first served, in a thread of its own."""

    def __init__(self) -> None:
        self.line: tuple[Task, ...] = ()  # the running one first; another tuple after each change, so that all may look
        self._changed = threading.Condition()
        self._running: Task | None = None
        threading.Thread(target=self._work, name="worker", daemon=True).start()

    def submit(self, title: str, work: Callable[[], Iterator[Any]]) -> Task:
        """Let `work` be done when its turn comes; it is called, and its iterator walked, in the worker's thread."""
        task = Task(title, work, self)
        with self._changed:
            self.line = (*self.line, task)
            self._changed.notify()
        return task

    def withdraw(self, task: Task) -> bool:
        """Take a task that has not begun out of the line; return whether it was there."""
        with self._changed:
            if task is self._running or task not in self.line:
                return False
            self.line = tuple(other for other in self.line if other is not task)
            return True

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: len(self.line) > 0)
                task = self._running = self.line[0]
            task.run()
            with self._changed:
                self.line, self._running = self.line[1:], None


@functools.cache
def shared() -> Worker:
    """Return the worker of this process."""
    return Worker()
