"""Stop signals: the first lets the step finish and saves everything, a second ends the process at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType, TracebackType

# Schedulers send USR1 some time before they kill a job; mpirun forwards it without ending the ranks itself.
SIGNALS = tuple(signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))


class StopSignals:
    """Context manager that records stop signals in `received`.

    Before `ready` is set there is nothing to save, and the first signal ends the process. So does a second one at any
    time, even in the middle of a step: a thread waits for it, since Python's handlers run only when the step returns.
    Outside the main thread, which alone receives signals, nothing is recorded.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.ready = False

    @property
    def stop_requested(self) -> bool:
        return self.received is not None

    def __enter__(self) -> StopSignals:
        self.active = threading.current_thread() is threading.main_thread()
        if self.active:
            self.read, self.write = os.pipe()
            os.set_blocking(self.write, False)
            self.wakeup_fd = signal.set_wakeup_fd(self.write, warn_on_full_buffer=False)
            self.handlers = {number: signal.signal(number, _ignore) for number in SIGNALS}
            self.thread = threading.Thread(target=self._watch, daemon=True)
            self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.active:
            for number, handler in self.handlers.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(self.wakeup_fd)
            os.close(self.write)  # ends the thread
            self.thread.join()
            os.close(self.read)

    def _watch(self) -> None:
        while byte := os.read(self.read, 1):
            if byte[0] not in SIGNALS:
                continue
            if self.received or not self.ready:
                end(signal.Signals(byte[0]))
            received = signal.Signals(byte[0])
            print(f"\n{received.name}: training stops after this step; a second signal ends it now", flush=True)
            self.received = received


def end(number: signal.Signals) -> None:
    """End this process with the exit code of signal `number`, without cleanup."""
    sys.stdout.flush()
    os._exit(128 + number)


def _ignore(number: int, frame: FrameType | None) -> None:
    """Do nothing: the signal wakes the thread, which handles it."""
