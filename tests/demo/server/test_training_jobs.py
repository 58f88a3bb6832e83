"""Training in processes of their own: started, watched, stopped, taken up again, and found by who comes later."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from demo.app.server import training_jobs
from demo.app.server.training_jobs import Run
from gm.embeddings import io as embedding_io
from gm.errors import UserError
from tests.project import Workshop


def until(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def options(workshop: Workshop, steps: int) -> dict[str, object]:
    images = str(workshop.folder / "images")
    return {"placeholder_token": "<my toy/..>".replace(" ", "-"), "data_path": images, "total_step": steps}


def test_a_run_is_stopped_and_taken_up_again(workshop: Workshop, tmp_path: Path) -> None:
    run = training_jobs.start(
        str(workshop.yaml), tmp_path / "runs", {**options(workshop, 3000), "checkpointing_steps": 1}
    )
    assert run.folder == tmp_path / "runs" / "my-toy"
    assert run.state == "running"
    until(lambda: len(run.records()) >= 3)
    assert run.state == "running"
    # Another process, which did not start it, sees the same.
    code = "import sys; from pathlib import Path; from demo.app.server import runs\n"
    code += "print([(r.name, r.state) for r in runs.all_runs(Path(sys.argv[1]))])"
    seen = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "runs")], capture_output=True, text=True, check=True
    )
    assert seen.stdout == "[('my-toy', 'running')]\n"
    with pytest.raises(UserError, match="my-toy is running; stop it first"):
        run.resume()
    run.stop()
    run.stop()  # a second click is not a second signal, which would end it before it has saved
    until(lambda: run.state != "running")
    assert run.state == "stopped", run.tail()
    assert run.resumable
    with (run.folder / training_jobs.CONSOLE).open("a") as console:
        console.write("error: something from before\n")
    assert run.state == "failed"
    steps = len(run.records())
    run.resume()
    until(lambda: len(run.records()) > steps + 2)
    assert [record["step"] for record in run.records()] == list(range(1, len(run.records()) + 1))
    run.stop()
    until(lambda: run.state == "stopped")
    run.resume()
    steps = len(run.records())
    until(lambda: len(run.records()) > steps + 1)
    os.kill(run.order["pid"], signal.SIGKILL)
    until(lambda: run.state == "failed")
    assert run.resumable


def test_a_run_that_ends_has_learned(workshop: Workshop, tmp_path: Path) -> None:
    more = {"infer_during_train": True, "infer_interval": 1, "save_ckpt_interval": 1}
    run = training_jobs.start(str(workshop.yaml), tmp_path, options(workshop, 2) | more)
    until(lambda: run.state != "running")
    assert run.state == "finished", run.tail()
    assert [path.stem for path in run.previews()] == ["step_0", "step_1", "step_2"]
    assert embedding_io.load(run.learned()[0]).metadata["step"] == 2
    assert [path.name for path in run.learned()] == ["smallest_2_ti.ckpt", "smallest_1_ti.ckpt"]
    assert run.report() == run.folder / "report.html"
    assert "trained <my-toy/..>" in run.tail()
    again = training_jobs.start(str(workshop.yaml), tmp_path, options(workshop, 2))
    assert again.name == "my-toy_2"
    assert [r.name for r in training_jobs.all_runs(tmp_path)] == ["my-toy_2", "my-toy"]
    until(lambda: again.state != "running")


def test_a_run_that_cannot_begin_has_failed_and_says_why(workshop: Workshop, tmp_path: Path) -> None:
    run = training_jobs.start(
        str(workshop.yaml), tmp_path, options(workshop, 2) | {"data_path": str(tmp_path / "nowhere")}
    )
    until(lambda: run.state != "running")
    assert (run.state, run.resumable) == ("failed", False)
    assert "nowhere" in run.tail(1)
    assert (run.records(), run.previews(), run.learned(), run.report()) == ([], [], [], None)
    with pytest.raises(UserError, match="has saved no state to go on from"):
        run.resume()


def test_a_number_that_another_process_has_now_is_not_the_run(tmp_path: Path) -> None:
    folder = tmp_path / "old"
    folder.mkdir()
    order = {"config": "c.yaml", "options": {"total_step": 5}, "pid": os.getpid(), "started": 1.0}
    order |= {"said": 0, "asked": False}
    (folder / training_jobs.ORDER).write_text(json.dumps(order))
    assert Run(folder).state == "stopped"
    Run(folder).stop()  # which must not reach this test


def test_what_a_run_needs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a run needs a word"):
        training_jobs.start("c.yaml", tmp_path, {"total_step": 3})
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot make a folder in .*file"):
        training_jobs.start("c.yaml", tmp_path / "file", {"total_step": 3, "placeholder_token": "<a>"})
