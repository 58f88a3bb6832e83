"""Training jobs: started, watched, stopped, resumed, and found again by other processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from demo.app.server import training_jobs, training_process
from demo.app.server.training_jobs import Launch, TrainingJob
from gm.config import cli
from gm.embeddings import io as embedding_io
from gm.errors import UserError
from tests.project import Workshop


@pytest.fixture(autouse=True)
def _no_process_is_left_behind() -> Iterator[None]:
    """End the training processes that a test started, also when the test fails."""
    earlier = set(training_process.children)
    yield
    for pid, child in training_process.children.items():
        if pid not in earlier and child.poll() is None:
            child.kill()
            child.wait(20)


def until(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def options(workshop: Workshop, steps: int) -> dict[str, object]:
    images = str(workshop.folder / "images")
    return {"placeholder_token": "<my-toy/..>", "data_path": images, "total_step": steps}


@pytest.mark.e2e
def test_job_is_stopped_and_resumed(workshop: Workshop, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    job = training_jobs.start(str(workshop.yaml), root, {**options(workshop, 3000), "checkpointing_steps": 1})
    assert job.folder == root / "my-toy"
    assert job.state == "running"
    until(lambda: len(job.records()) >= 3)
    assert job.state == "running"
    # A process that did not start the job sees the same.
    code = "import sys; from pathlib import Path; from demo.app.server import training_jobs\n"
    code += "print([(job.name, job.state) for job in training_jobs.all_jobs(Path(sys.argv[1]))])"
    other = subprocess.run([sys.executable, "-c", code, str(root)], capture_output=True, text=True, check=True)
    assert other.stdout == "[('my-toy', 'running')]\n"
    with pytest.raises(UserError, match="my-toy is running; stop it first"):
        job.resume()
    job.stop()
    job.stop()  # a second click sends no second signal, which would end the process before it has saved
    until(lambda: job.state != "running")
    assert job.state == "stopped", job.console_tail()
    assert job.is_resumable
    with (job.folder / training_process.CONSOLE).open("a") as console:
        console.write("error: something from before\n")
    assert job.state == "failed"
    steps = len(job.records())
    job.resume()
    until(lambda: len(job.records()) > steps + 2)
    assert [record["step"] for record in job.records()] == list(range(1, len(job.records()) + 1))
    job.stop()
    until(lambda: job.state == "stopped")
    job.resume()
    steps = len(job.records())
    until(lambda: len(job.records()) > steps + 1)
    os.kill(job.launch.pid, signal.SIGKILL)
    until(lambda: job.state == "failed")
    assert job.is_resumable


@pytest.mark.e2e
def test_finished_job_has_written_its_results(workshop: Workshop, tmp_path: Path) -> None:
    more = {"infer_during_train": True, "infer_interval": 1, "save_ckpt_interval": 1}
    job = training_jobs.start(str(workshop.yaml), tmp_path, options(workshop, 2) | more)
    until(lambda: job.state != "running")
    assert job.state == "finished", job.console_tail()
    assert [path.stem for path in job.previews()] == ["step_0", "step_1", "step_2"]
    assert embedding_io.load(job.embedding_files()[0]).metadata["step"] == 2
    assert [path.name for path in job.embedding_files()] == ["smallest_2_ti.ckpt", "smallest_1_ti.ckpt"]
    assert job.report() == job.folder / "report.html"
    assert f"<my-toy/..>: {job.embedding_files()[0]}" in job.console_tail()
    second = training_jobs.start(str(workshop.yaml), tmp_path, options(workshop, 2))
    assert second.name == "my-toy_2"
    assert [j.name for j in training_jobs.all_jobs(tmp_path)] == ["my-toy_2", "my-toy"]


@pytest.mark.e2e
def test_job_that_cannot_start_has_failed_with_its_reason(workshop: Workshop, tmp_path: Path) -> None:
    job = training_jobs.start(
        str(workshop.yaml), tmp_path, options(workshop, 2) | {"data_path": str(tmp_path / "nowhere")}
    )
    until(lambda: job.state != "running")
    assert (job.state, job.is_resumable) == ("failed", False)
    assert "nowhere" in job.console_tail(1)
    assert (job.records(), job.previews(), job.embedding_files(), job.report()) == ([], [], [], None)
    with pytest.raises(UserError, match="has no saved state to resume from"):
        job.resume()


def test_reused_process_id_is_not_taken_for_the_job(tmp_path: Path) -> None:
    folder = tmp_path / "old"
    folder.mkdir()
    Launch("c.yaml", {"total_step": 5}, os.getpid(), 1.0).write(folder)
    assert TrainingJob(folder).state == "stopped"
    TrainingJob(folder).stop()  # must not reach this process


def test_start_checks_options_and_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs placeholder_token and total_step"):
        training_jobs.start("c.yaml", tmp_path, {"total_step": 3})
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot make a folder in .*file"):
        training_jobs.start("c.yaml", tmp_path / "file", {"total_step": 3, "placeholder_token": "<a>"})


def test_options_become_flags_that_the_script_reads_back(workshop: Workshop) -> None:
    options = {
        "revision": None,
        "lora_weight": ["a.safetensors:0.5", "b c.safetensors"],
        "cache_weights": False,
        "vae": "",
        "placeholder_token": "<a=b c>",
    }
    flags = ["--config", str(workshop.yaml), *training_process.as_flags(options)]
    config = cli.parse("", ("run", "concept"), flags)
    assert (config.run.revision, config.run.cache_weights, config.run.vae) == (None, False, "")
    assert config.run.lora_weight == ["a.safetensors:0.5", "b c.safetensors"]
    assert config.concept.placeholder_token == "<a=b c>"
    assert training_process.as_flags({"lora_weight": []}) == []
