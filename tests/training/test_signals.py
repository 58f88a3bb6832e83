"""Stop signals: the first and the second."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from gm.training.signals import SIGNALS, StopSignals

# A step that no signal cuts short, as one of a graph is not: Python's handlers wait until it is done.
CODE = """
    import hashlib, sys, time
    from gm.training.signals import StopSignals
    with StopSignals() as signals:
        signals.ready = sys.argv[1] == "ready"
        print("set up", flush=True)
        while signals.received is None:
            hashlib.pbkdf2_hmac("sha256", b"", b"", int(sys.argv[2]))
        print("saved", flush=True)
    print("ended by itself", flush=True)
"""
LONG = 10**9


def start(ready: str, rounds: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(CODE), ready, str(rounds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "set up\n"
    return process


@pytest.mark.e2e
@pytest.mark.parametrize("number", SIGNALS, ids=lambda n: n.name)
def test_first_signal_lets_the_step_finish(number: signal.Signals) -> None:
    process = start("ready", 100_000)
    process.send_signal(number)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 0
    message = f"{number.name}: training stops after this step; a second signal ends it now"
    assert out == f"\n{message}\nsaved\nended by itself\n"
    assert error == ""


@pytest.mark.e2e
def test_second_signal_ends_the_process_in_the_middle_of_a_step() -> None:
    process = start("ready", LONG)
    process.send_signal(signal.SIGINT)
    assert process.stdout
    assert process.stdout.readline() == "\n"
    assert process.stdout.readline().startswith("SIGINT: training stops after this step")
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    out, error = process.communicate(timeout=60)
    assert (process.returncode, out, error) == (143, "", "")


@pytest.mark.e2e
def test_first_signal_ends_the_process_before_ready() -> None:
    process = start("compiling", LONG)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=60)
    assert (process.returncode, out, error) == (130, "", "")


def test_handlers_are_restored() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    threads = threading.active_count()
    with StopSignals() as signals:
        assert signal.getsignal(signal.SIGINT) != before[0]
        signals.ready = True
        signal.raise_signal(signal.SIGUSR1)
        until = time.monotonic() + 10
        while signals.received is None and time.monotonic() < until:
            time.sleep(0.01)
        assert signals.received is signal.SIGUSR1
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert threading.active_count() == threads


def test_other_threads_record_no_signals() -> None:
    received = []

    def work() -> None:
        with StopSignals() as signals:
            received.append(signals.received)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert received == [None]
