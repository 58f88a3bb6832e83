"""The worker's queue: order, cancellation and failures."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from demo.app.server import worker as worker_module
from demo.app.server.worker import Owner, Task, Worker
from gm.errors import UserError


def submit_stepwise(worker: Worker) -> tuple[Task, threading.Event]:
    """Submit a task that yields 0, 1, … one each time the event is set, which it clears."""
    step = threading.Event()

    def work() -> Iterator[int]:
        for number in range(100):
            assert step.wait(10)
            step.clear()
            yield number

    return worker.submit("stepwise", work), step


def until(condition: object) -> None:
    assert callable(condition)
    for _ in range(1000):
        if condition():
            return
        threading.Event().wait(0.005)
    raise AssertionError("the condition did not become true")


def test_tasks_run_in_order_and_know_their_position() -> None:
    worker, done = Worker(), []
    first, step = submit_stepwise(worker)
    others = [worker.submit(str(k), lambda k=k: iter([done.append(k)])) for k in range(3)]
    until(lambda: first.state == "running")
    assert [task.position for task in (first, *others)] == [0, 1, 2, 3]
    assert {task.state for task in others} == {"queued"}
    first.cancel()
    step.set()
    assert all(task.wait(10) for task in others)
    assert done == [0, 1, 2]
    assert [task.state for task in (first, *others)] == ["cancelled", "done", "done", "done"]
    assert {task.position for task in others} == {0}


def test_cancelled_task_ends_at_its_next_event_and_keeps_its_results() -> None:
    worker, closed, cancelled = Worker(), threading.Event(), threading.Event()

    def work() -> Iterator[int]:
        try:
            yield 1
            cancelled.wait(10)
            yield 2
            yield 3
        finally:
            closed.set()

    task = worker.submit("", work)
    until(lambda: task.events == [1])
    task.cancel()
    cancelled.set()
    assert task.wait(10)
    assert (task.state, task.events) == ("cancelled", [1, 2])
    assert closed.wait(10)


def test_cancelled_queued_task_leaves_at_once_and_never_runs() -> None:
    worker, started = Worker(), []
    first, step = submit_stepwise(worker)
    second, third = (worker.submit("", lambda k=k: iter([started.append(k)])) for k in (2, 3))
    until(lambda: first.state == "running")
    second.cancel()
    assert second.wait(0)
    assert (second.state, third.position, first.state) == ("cancelled", 1, "running")
    first.cancel()
    step.set()
    assert third.wait(10)
    assert started == [3]


@pytest.mark.parametrize(
    ("error", "message"),
    [(UserError("give less"), "give less"), (ZeroDivisionError("x"), "ZeroDivisionError: x; the server's log")],
)
def test_failed_task_keeps_its_error_and_the_next_task_runs(error: Exception, message: str) -> None:
    def work() -> Iterator[int]:
        yield 1
        raise error

    worker = Worker()
    task, following = worker.submit("", work), worker.submit("", lambda: iter([2]))
    assert following.wait(10)
    assert (task.state, task.events, following.events) == ("failed", [1], [2])
    assert task.error.startswith(message)


def test_all_tasks_run_in_one_thread() -> None:
    worker, threads = Worker(), []
    tasks = [worker.submit("", lambda: iter([threads.append(threading.current_thread())])) for _ in range(3)]
    assert all(task.wait(10) for task in tasks)
    assert len(set(threads)) == 1
    assert threads[0] is not threading.current_thread()
    assert worker_module.shared() is worker_module.shared()


def test_tasks_beyond_the_limits_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "MAX_WAITING_OF_OWNER", 2)
    monkeypatch.setattr(worker_module, "MAX_WAITING", 3)
    worker = Worker()
    first, step = submit_stepwise(worker)
    second = worker.submit("", lambda: iter([]), Owner("me"))
    third = worker.submit("", lambda: iter([]), Owner("me"))
    with pytest.raises(UserError, match="2 of your requests are waiting or running; wait for one, or cancel one"):
        worker.submit("", lambda: iter([]), Owner("me"))
    with pytest.raises(UserError, match="3 requests of all users are waiting"):
        worker.submit("", lambda: iter([]), Owner("they"))
    third.cancel()
    fourth = worker.submit("", lambda: iter([]), Owner("me"))
    first.cancel()
    step.set()
    assert all(task.wait(10) for task in (second, fourth))


def test_tasks_of_an_owner_who_is_gone_are_cancelled_and_wait_in_nobodys_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "MAX_WAITING", 2)
    worker, gone, started = Worker(), threading.Event(), []
    owner = Owner("gone", gone.is_set)
    step = threading.Event()

    def work() -> Iterator[int]:
        for number in range(100):
            assert step.wait(10)
            step.clear()
            yield number

    running = worker.submit("", work, owner)
    waiting = worker.submit("", lambda: iter([started.append("waiting")]), owner)
    until(lambda: running.state == "running")
    step.set()
    until(lambda: running.events == [0])
    gone.set()
    other = worker.submit("", lambda: iter(["mine"]), Owner("me"))  # the waiting one leaves its place
    assert waiting.state == "cancelled"
    step.set()
    assert other.wait(10)
    assert (running.state, running.events, other.events, started) == ("cancelled", [0, 1], ["mine"], [])
