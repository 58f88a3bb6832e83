"""Stopping from outside: what the first signal does, and the second."""

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
    with StopSignals() as stop:
        stop.ready = sys.argv[1] == "ready"
        print("set up", flush=True)
        while stop.asked is None:
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


@pytest.mark.parametrize("number", SIGNALS, ids=lambda n: n.name)
def test_the_first_signal_lets_the_step_end(number: signal.Signals) -> None:
    process = start("ready", 100_000)
    process.send_signal(number)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 0
    assert out == f"\n{number.name}: the run stops after this step; once more ends it at once\nsaved\nended by itself\n"
    assert error == ""


def test_a_second_one_ends_the_process_in_the_middle_of_a_step() -> None:
    process = start("ready", LONG)
    process.send_signal(signal.SIGINT)
    assert process.stdout
    assert process.stdout.readline() == "\n"
    assert process.stdout.readline().startswith("SIGINT: the run stops after this step")
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    out, error = process.communicate(timeout=60)
    assert (process.returncode, out, error) == (143, "", "")


def test_before_there_is_anything_to_save_the_first_ends_it() -> None:
    process = start("compiling", LONG)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=60)
    assert (process.returncode, out, error) == (130, "", "")


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    threads = threading.active_count()
    with StopSignals() as stop:
        assert signal.getsignal(signal.SIGINT) != before[0]
        stop.ready = True
        signal.raise_signal(signal.SIGUSR1)
        until = time.monotonic() + 10
        while stop.asked is None and time.monotonic() < until:
            time.sleep(0.01)
        assert stop.asked is signal.SIGUSR1
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert threading.active_count() == threads


def test_in_another_thread_nothing_is_watched() -> None:
    seen = []

    def work() -> None:
        with StopSignals() as stop:
            seen.append(stop.asked)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [None]
