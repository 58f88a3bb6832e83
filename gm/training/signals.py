"""Stopping a run from outside: once, and it finishes its step and saves; twice, and it ends at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType, TracebackType

# USR1 is what schedulers send some time before they kill, and what mpirun passes on without ending anything itself.
SIGNALS = tuple(signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))


class StopSignals:
    """While the `with` block runs, `asked` is the signal that asked to stop, or None.

    Before `ready` there is nothing to save, and the first signal ends the process; so does a second one at any time,
    also in the middle of a step: a thread of its own is woken, since Python's handlers wait until the step returns.
    Outside the main thread, where signals do not arrive, nothing is watched.
    """

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None
        self.ready = False

    def __enter__(self) -> StopSignals:
        self.watching = threading.current_thread() is threading.main_thread()
        if self.watching:
            self.read, self.write = os.pipe()
            os.set_blocking(self.write, False)
            self.woken_before = signal.set_wakeup_fd(self.write, warn_on_full_buffer=False)
            self.before = {number: signal.signal(number, _seen) for number in SIGNALS}
            self.thread = threading.Thread(target=self._watch, daemon=True)
            self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.watching:
            for number, handler in self.before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(self.woken_before)
            os.close(self.write)  # ends the thread
            self.thread.join()
            os.close(self.read)

    def _watch(self) -> None:
        while woken := os.read(self.read, 1):
            if woken[0] not in SIGNALS:
                continue
            if self.asked or not self.ready:
                end(signal.Signals(woken[0]))
            self.asked = signal.Signals(woken[0])
            print(f"\n{self.asked.name}: the run stops after this step; once more ends it at once", flush=True)


def end(number: signal.Signals) -> None:
    """End this process as `number` would, without waiting for anything."""
    sys.stdout.flush()
    os._exit(128 + number)


def _seen(number: int, frame: FrameType | None) -> None:
    """Do nothing: what is to be done, the thread that this wakes does."""
