"""Task queue with one worker thread, which owns the models.

A model has one set of graphs and one memory, so two tasks at once would only slow each other down. A task outlives the
page that submitted it and keeps its events for whoever reads them; it is cancelled when its owner is gone.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from gm.errors import UserError

log = logging.getLogger("gm")

END_STATES = ("done", "failed", "cancelled")
MAX_WAITING = 40  # tasks that have not ended, of all owners
MAX_WAITING_OF_OWNER = 4


def _never() -> bool:
    return False


@dataclass(frozen=True)
class Owner:
    """Who submits tasks: a browser by its id, and whether nobody looks at it any more; "" is no browser."""

    id: str = ""
    is_gone: Callable[[], bool] = _never


NOBODY = Owner()


class Task:
    """A unit of work, submitted once; `events` is what it has yielded so far.

    `state` is queued, running, done, failed (then `error` is the reason, in one line) or cancelled. Work that can skip
    a part of itself clears `skip_requested` when it has.
    """

    def __init__(self, title: str, work: Callable[[], Iterator[Any]], worker: Worker, owner: Owner = NOBODY) -> None:
        self.title = title
        self.owner = owner
        self.state = "queued"
        self.error = ""
        self.events: list[Any] = []
        self.skip_requested = threading.Event()
        self._work = work
        self._worker = worker
        self._cancelled = threading.Event()
        self._ended = threading.Event()

    @property
    def position(self) -> int:
        """Number of tasks ahead in the queue; 0 while it runs and after it has ended."""
        queue = self._worker.queue
        return queue.index(self) if self in queue else 0

    def cancel(self) -> None:
        """End the task at its next event, or at once if it is still queued; its results so far stay."""
        self._cancelled.set()
        if self._worker.remove(self):
            self.state = "cancelled"
            self._ended.set()

    def skip(self) -> None:
        """Ask the work to leave what it is at, such as one image of several, and go on with the next."""
        self.skip_requested.set()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until the task has ended, at most `seconds`; return whether it has."""
        return self._ended.wait(seconds)

    def run(self) -> None:
        """Do the work; called in the worker's thread only."""
        try:
            self.state = "running"
            if not self._is_unwanted():
                self._collect_events()
            self.state = "cancelled" if self._cancelled.is_set() else "done"
        except UserError as error:
            self._fail(str(error))
        except Exception as error:
            log.exception("%s failed", self.title)
            self._fail(f"{type(error).__name__}: {error}; the server's log has the details")
        finally:
            self._ended.set()

    def _collect_events(self) -> None:
        for event in self._work():
            self.events.append(event)
            if self._is_unwanted():
                return  # the iterator is closed where it stands

    def _is_unwanted(self) -> bool:
        if self.owner.is_gone():
            self._cancelled.set()
        return self._cancelled.is_set()

    def _fail(self, error: str) -> None:
        self.error = error  # before the state: readers look at the error once the state is "failed"
        self.state = "failed"


class Worker:
    """A thread that runs submitted tasks one after another, in the order of submission."""

    def __init__(self) -> None:
        self.queue: tuple[Task, ...] = ()  # the running task first; replaced, never mutated, so reading needs no lock
        self._changed = threading.Condition()
        self._running: Task | None = None
        threading.Thread(target=self._loop, name="worker", daemon=True).start()

    def submit(
        self,
        title: str,
        work: Callable[[], Iterator[Any]],
        owner: Owner = NOBODY,
        skip_requested: threading.Event | None = None,
    ) -> Task:
        """Queue a task; `work` is called and its iterator consumed in the worker's thread.

        `skip_requested` is the task's, for work that looks at it. Raises UserError if too many tasks wait already, of
        this owner or in all.
        """
        task = Task(title, work, self, owner)
        task.skip_requested = skip_requested or task.skip_requested
        for other in self.queue:
            if other.owner.is_gone():
                other.cancel()
        with self._changed:
            count = sum(other.owner.id == owner.id for other in self.queue)
            if owner.id and count >= MAX_WAITING_OF_OWNER:
                raise UserError(f"{count} of your requests are waiting or running; wait for one, or cancel one")
            if len(self.queue) >= MAX_WAITING:
                raise UserError(f"{len(self.queue)} requests of all users are waiting; try again later")
            self.queue = (*self.queue, task)
            self._changed.notify()
        return task

    def remove(self, task: Task) -> bool:
        """Remove a task that has not started from the queue; return whether it was there."""
        with self._changed:
            if task is self._running or task not in self.queue:
                return False
            self.queue = tuple(other for other in self.queue if other is not task)
            return True

    def _loop(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: len(self.queue) > 0)
                task = self.queue[0]
                self._running = task
            task.run()
            with self._changed:
                self.queue = self.queue[1:]
                self._running = None


@functools.cache
def shared() -> Worker:
    """Return the worker of this process."""
    return Worker()
