"""A line of tasks: who is next, who may leave, and what stays when one fails."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from demo.app.server import worker
from demo.app.server.worker import Task, Worker
from gm.errors import UserError


def held(worker: Worker, title: str = "held") -> tuple[Task, threading.Event]:
    """Submit a task that yields 0, 1, … one at each set of the event, which it clears."""
    go = threading.Event()

    def work() -> Iterator[int]:
        for number in range(100):
            assert go.wait(10)
            go.clear()
            yield number

    return worker.submit(title, work), go


def until(condition: object) -> None:
    assert callable(condition)
    for _ in range(1000):
        if condition():
            return
        threading.Event().wait(0.005)
    raise AssertionError("it never became so")


def test_tasks_are_done_in_the_order_they_came_and_know_their_place() -> None:
    line, done = Worker(), []
    first, go = held(line)
    others = [line.submit(str(k), lambda k=k: iter([done.append(k)])) for k in range(3)]
    until(lambda: first.state == "running")
    assert [task.place for task in (first, *others)] == [0, 1, 2, 3]
    assert {task.state for task in others} == {"waiting"}
    first.cancel()
    go.set()
    assert all(task.wait(10) for task in others)
    assert done == [0, 1, 2]
    assert [task.state for task in (first, *others)] == ["cancelled", "done", "done", "done"]
    assert {task.place for task in others} == {0}


def test_a_cancelled_task_ends_at_its_next_step_and_keeps_what_it_did() -> None:
    line, closed = Worker(), threading.Event()

    def work() -> Iterator[int]:
        try:
            yield 1
            asked.wait(10)
            yield 2
            yield 3
        finally:
            closed.set()

    asked = threading.Event()
    task = line.submit("", work)
    until(lambda: task.events == [1])
    task.cancel()
    asked.set()
    assert task.wait(10)
    assert (task.state, task.events) == ("cancelled", [1, 2])
    assert closed.wait(10)


def test_one_that_waits_leaves_the_line_at_once_and_is_never_begun() -> None:
    line, begun = Worker(), []
    first, go = held(line)
    second, third = (line.submit("", lambda k=k: iter([begun.append(k)])) for k in (2, 3))
    until(lambda: first.state == "running")
    second.cancel()
    assert second.wait(0)
    assert (second.state, third.place, first.state) == ("cancelled", 1, "running")
    first.cancel()
    go.set()
    assert third.wait(10)
    assert begun == [3]


@pytest.mark.parametrize(
    ("error", "said"),
    [(UserError("give less"), "give less"), (ZeroDivisionError("x"), "ZeroDivisionError: x; the log")],
)
def test_a_task_that_fails_says_why_and_the_next_is_done(error: Exception, said: str) -> None:
    def work() -> Iterator[int]:
        yield 1
        raise error

    line = Worker()
    task, following = line.submit("", work), line.submit("", lambda: iter([2]))
    assert following.wait(10)
    assert (task.state, task.events, following.events) == ("failed", [1], [2])
    assert task.error.startswith(said)


def test_all_work_is_done_in_one_thread() -> None:
    line, threads = Worker(), []
    tasks = [line.submit("", lambda: iter([threads.append(threading.current_thread())])) for _ in range(3)]
    assert all(task.wait(10) for task in tasks)
    assert len(set(threads)) == 1
    assert threads[0] is not threading.current_thread()
    assert worker.shared() is worker.shared()
