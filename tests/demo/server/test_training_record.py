"""Records of training runs: damaged ones are one damaged entry, and belong to the browser that started them."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from demo.app.server import training_jobs, training_process, training_queue, training_record
from demo.app.server.training_jobs import TrainingJob
from demo.app.server.training_process import CONSOLE
from demo.app.server.training_record import Launch, read_log
from gm.errors import UserError
from gm.runtime import atomic_io
from gm.training.output_dir import LOG

RECORD = {"config": "c.yaml", "options": {"total_step": 5}, "pid": 999_999_999, "started": 1.0}
OPTIONS = {"placeholder_token": "<toy>", "total_step": 5}


def write_record(folder: Path, content: Any) -> TrainingJob:
    folder.mkdir(parents=True)
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    (folder / training_queue.JOB_FILE).write_bytes(text)
    return TrainingJob(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        [1],
        {"config": "c.yaml", "options": {}, "pid": 1, "said": 0},
        {**RECORD, "options": {}},
        {**RECORD, "options": []},
        {**RECORD, "options": {"total_step": "many"}},
        {**RECORD, "options": {"total_step": 0}},
        {**RECORD, "started": "yesterday"},
        {**RECORD, "started": 1e300},
        {**RECORD, "pid": -1},
        {**RECORD, "console_offset": -5},
        {**RECORD, "owner": 7},
    ],
)
def test_a_damaged_record_is_one_damaged_entry(tmp_path: Path, content: Any) -> None:
    good, bad = write_record(tmp_path / "good", RECORD), write_record(tmp_path / "bad", content)
    assert training_jobs.all_jobs(tmp_path, "me") == [good, bad]
    assert good.state == "stopped"
    for read in (lambda: bad.launch, lambda: bad.state):
        with pytest.raises(UserError, match=r"the record job\.json of the run bad is damaged") as caught:
            read()
        assert len(str(caught.value).splitlines()) == 1


def test_a_record_that_is_no_file_is_damaged(tmp_path: Path) -> None:
    job = TrainingJob(tmp_path / "run")
    (job.folder / training_queue.JOB_FILE).mkdir(parents=True)
    with pytest.raises(UserError, match="is damaged"):
        job.launch.pid  # noqa: B018
    os.mkfifo(tmp_path / "job.json")
    with pytest.raises(UserError, match="is a pipe"):
        Launch.read(tmp_path)


def test_damaged_lines_of_a_log_are_left_out(tmp_path: Path) -> None:
    good = {"step": 2, "loss": 0.5, "loss_smoothed": 0.6}
    lines = [json.dumps(good), "5", "[]", "null", '"loss"', '{"loss": 1}', json.dumps({**good, "step": "x"})]
    lines += [
        json.dumps({**good, "loss_smoothed": None}),
        "[" * 100_000,
        '{"step": NaN, "loss": 1, "loss_smoothed": 1}',
    ]
    (tmp_path / "log.jsonl").write_bytes("\n".join(lines).encode() + b"\n\xff\xfe\n" + b'{"step": 3, "lo')
    assert read_log(tmp_path / "log.jsonl") == [good]
    assert read_log(tmp_path / "missing") == []
    assert read_log(tmp_path) == []


def test_other_files_of_a_damaged_run_do_not_matter(tmp_path: Path) -> None:
    job = write_record(tmp_path / "run", RECORD)
    for name in (LOG, CONSOLE, "smallest_1_ti.ckpt"):
        (job.folder / name).mkdir()
    (job.folder / "previews").mkdir()
    for name in ("step_x.png", "step_.png", "step_3.png", "step_20.png"):
        (job.folder / "previews" / name).write_bytes(b"")
    assert (job.state, job.records(), job.embedding_files(), job.console_tail()) == ("stopped", [], [], "")
    assert [path.name for path in job.previews()] == ["step_3.png", "step_20.png"]


def test_runs_are_those_of_their_browser_unless_shared(tmp_path: Path) -> None:
    mine = write_record(tmp_path / "mine", {**RECORD, "owner": "me", "started": 3.0})
    theirs = write_record(tmp_path / "theirs", {**RECORD, "owner": "they", "started": 2.0})
    old = write_record(tmp_path / "old", RECORD)
    assert training_jobs.all_jobs(tmp_path, "me") == [mine, old]
    assert training_jobs.private_folders(tmp_path, "me") == [theirs.folder]
    theirs.share(True)
    assert training_jobs.all_jobs(tmp_path, "me") == [mine, theirs, old]
    assert training_jobs.private_folders(tmp_path, "me") == []
    theirs.share(False)
    assert training_jobs.all_jobs(tmp_path, "me") == [mine, old]


def test_the_record_is_written_before_the_process_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Launch] = []

    def no_process(command: list[str], **_: Any) -> None:
        seen.extend(Launch.read(path.parent) for path in tmp_path.glob("*/job.json"))
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(subprocess, "Popen", no_process)
    with pytest.raises(UserError, match="cannot start the training toy: Cannot allocate memory"):
        training_jobs.start("c.yaml", tmp_path, OPTIONS, "me")
    assert [(launch.owner, launch.pid) for launch in seen] == [("me", 0)]
    (job,) = training_jobs.all_jobs(tmp_path, "me")
    assert job.state == "failed"
    job.stop()  # must not reach process 0, which is every process of the server


def test_a_full_disk_says_so_and_starts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(atomic_io, "_flush", full)
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    with pytest.raises(UserError, match="the disk is full"):
        training_jobs.start("c.yaml", tmp_path, OPTIONS)
    assert training_jobs.all_jobs(tmp_path) == []
    assert not (tmp_path / "toy").exists()


class _Process:
    """Stands for a process that is alive."""

    def __init__(self, command: list[str], **_: Any) -> None:
        self.command, self.pid = command, 900_000_000 + int(time.monotonic_ns() % 90_000_000)

    def poll(self) -> None:
        return None


def test_runs_beyond_the_limits_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", _Process)
    monkeypatch.setattr(training_process, "children", {})
    monkeypatch.setattr(training_jobs, "MAX_WAITING_OF_OWNER", 2)
    monkeypatch.setattr(training_jobs, "MAX_WAITING", 3)
    for _ in range(2):
        training_jobs.start("c.yaml", tmp_path, OPTIONS, "me")
    with pytest.raises(UserError, match="2 of your training runs are waiting or running"):
        training_jobs.start("c.yaml", tmp_path, OPTIONS, "me")
    training_jobs.start("c.yaml", tmp_path, OPTIONS, "they")
    with pytest.raises(UserError, match="3 training runs of all users are waiting"):
        training_jobs.start("c.yaml", tmp_path, OPTIONS, "others")
    assert len(training_jobs.all_jobs(tmp_path)) == 3


def test_runs_wait_for_earlier_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command is `sleep`, with the option by which a run's process is known."""
    script = tmp_path / "train.py"
    script.write_text("import time\nprint('training', flush=True)\ntime.sleep(60)\n")
    monkeypatch.setattr(training_process, "_SCRIPT", script)
    root = tmp_path / "runs"
    jobs = [training_jobs.start("", root, OPTIONS, "me") for _ in range(3)]
    try:
        until(lambda: "training" in jobs[0].console_tail())
        assert [job.state for job in jobs] == ["running", "queued", "queued"]
        with pytest.raises(UserError, match="is running; stop it first"):
            jobs[1].resume()
        jobs[1].stop()  # one that waits does not begin
        until(lambda: jobs[1].state == "stopped")
        assert jobs[1].console_tail() == ""
        # The waiting process knows its turn by itself, without the server that started it.
        until(lambda: training_queue.read_pid(jobs[2].folder) == jobs[2].launch.pid)
        jobs[0].stop()
        until(lambda: jobs[2].state == "running" and "training" in jobs[2].console_tail())
    finally:
        for job in jobs:
            training_process.children[job.launch.pid].kill()
            training_process.children[job.launch.pid].wait(20)


def test_a_record_without_the_process_id_finds_it(tmp_path: Path) -> None:
    """The server ended after it had started the process, and before it knew its id."""
    job = write_record(tmp_path / "run", {**RECORD, "pid": 0})
    code = "import time; time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", code, f"--save_path={job.folder}"])
    try:
        (job.folder / training_queue.PID).write_text(str(child.pid))
        until(lambda: job.state == "running")
        later = write_record(tmp_path / "later", {**RECORD, "started": 2.0})
        assert training_queue.count_earlier(later.folder) == 1
        assert training_queue.count_earlier(job.folder) == 0
    finally:
        child.kill()
        child.wait(20)
    assert job.state == "stopped"
    assert training_record.Launch.read(job.folder).pid == child.pid


def until(condition: Any, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
