"""Several processes as one run: they find one another, stop together, end together, and go on in any number."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from gm.embeddings import io as embedding_io
from gm.runtime import distributed
from gm.training import checkpoint
from tests.project import Workshop

ROOT = Path(__file__).resolve().parents[2]
MPIRUN = ("mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2")
FLAGS = ("--is_parallel", "True", "--gradient_accumulation_steps", "2", "--total_step", "20")
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="module")
def whole(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of twenty steps by two ranks that nothing interrupted."""
    place = tmp_path_factory.mktemp("ranks") / "whole"
    command = [*MPIRUN, sys.executable, "train_textual_inversion.py", "--config", str(workshop.yaml)]
    command += ["--save_path", str(place), *FLAGS]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)
    return place


@pytest.fixture
def start(workshop: Workshop, tmp_path: Path) -> Iterator[Start]:
    """Return the function that starts training under a launcher, into a folder of `tmp_path`."""
    running = []

    def begin(launcher: tuple[str, ...], name: str, *flags: str, **environment: str) -> subprocess.Popen[str]:
        command = [*launcher, sys.executable, "-u", "train_textual_inversion.py", "--config", str(workshop.yaml)]
        command += ["--save_path", str(tmp_path / name), "--gradient_accumulation_steps", "2"]
        command += ["--checkpointing_steps", "4", *flags]
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **environment},
        )
        running.append(process)
        return process

    yield begin
    for process in running:
        process.kill()
        process.communicate()


def until(process: subprocess.Popen[str], text: str) -> str:
    """Read what the process says up to a line that holds `text`."""
    assert process.stdout
    said = ""
    for line in process.stdout:
        said += line
        if text in line:
            return said
    raise AssertionError(said)


def until_step(place: Path, step: int) -> None:
    """Wait until a run has logged `step`."""
    log = place / "log.jsonl"
    for _ in range(600):
        if log.exists() and f'"step": {step},' in log.read_text():
            return
        time.sleep(0.1)
    raise AssertionError(f"no step {step} in a minute")


def pids(launcher: subprocess.Popen[str]) -> list[int]:
    """Return the processes that mpirun started, by rank."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            environment = (entry / "environ").read_bytes().split(b"\0")
            parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except (OSError, IndexError):
            continue
        rank = [value for value in environment if value.startswith(b"OMPI_COMM_WORLD_RANK=")]
        if parent == launcher.pid and rank:
            found[int(rank[0].split(b"=")[1])] = int(entry.name)
    return [found[rank] for rank in sorted(found)]


def alive(pid: int) -> bool:
    """Return whether a process runs; one that has ended may be listed until its parent asks."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def rows(place: Path, step: int) -> np.ndarray:
    concept = embedding_io.load(place / f"smallest_{step}_ti.ckpt")
    return np.concatenate([concept.vectors["clip_l"].ravel(), concept.vectors["clip_g"].ravel()])


@pytest.mark.slow
@pytest.mark.parametrize("who", ["launcher", "second rank"])
def test_ranks_stop_together_and_go_on_as_if_they_had_not(start: Start, whole: Path, tmp_path: Path, who: str) -> None:
    flags = (*FLAGS, "--resume", "latest")
    process = start(MPIRUN, "parts", *flags)
    until_step(tmp_path / "parts", 5)
    # mpirun passes USR1 on to all, and ends nothing itself; the other way reaches one rank only.
    os.kill(process.pid if who == "launcher" else pids(process)[1], signal.SIGUSR1)
    said = process.communicate(timeout=60)[0]
    assert process.returncode > 128, said  # mpirun ends a rank that is slower to end than another
    assert "stopped after step" in said
    stopped = checkpoint.find("latest", tmp_path / "parts")
    assert stopped
    assert 5 <= stopped.step < 20
    assert stopped.step % 2 == 0  # between updates each rank has a sum of its own
    assert f"stopped after step {stopped.step} of 20" in said
    process = start(MPIRUN, "parts", *flags)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 0, said
    assert f"after step {stopped.step}" in said
    assert np.array_equal(rows(tmp_path / "parts", 20), rows(whole, 20))


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_others_and_fewer_go_on(start: Start, tmp_path: Path) -> None:
    process = start(MPIRUN, "run", "--is_parallel", "True", "--total_step", "100000")
    until_step(tmp_path / "run", 6)
    both = pids(process)
    os.kill(both[1], signal.SIGKILL)
    died = time.monotonic()
    said = process.communicate(timeout=60)[0]
    assert process.returncode != 0
    assert "exited on signal 9" in said  # mpirun says which
    while any(alive(pid) for pid in both):
        assert time.monotonic() - died < 30
        time.sleep(0.1)
    stopped = checkpoint.find("latest", tmp_path / "run")
    assert stopped
    assert stopped.step >= 4
    alone = start((), "run", "--total_step", str(stopped.step + 2), "--resume", "latest")
    said = alone.communicate(timeout=60)[0]
    assert alone.returncode == 0, said
    assert "--resume: training.is_parallel was True → False from here on" in said
    assert np.isfinite(rows(tmp_path / "run", stopped.step + 2)).all()


@pytest.mark.slow
def test_without_a_launcher_that_notices_the_others_give_up_after_a_while(start: Start, tmp_path: Path) -> None:
    port = str(20000 + os.getpid() % 10000)
    world = {"OMPI_COMM_WORLD_SIZE": "2", "MS_SCHED_PORT": port}
    flags = ("--is_parallel", "True", "--total_step", "100000", "--distributed_timeout", "5")
    both = [start((), "run", *flags, **world, OMPI_COMM_WORLD_RANK=rank) for rank in ("0", "1")]
    until_step(tmp_path / "run", 6)
    both[1].kill()
    said = both[0].communicate(timeout=60)[0]
    assert both[0].returncode == 1, said
    assert "error: rank 0 has waited 5 s for the other ranks" in said
    assert checkpoint.find("latest", tmp_path / "run")


def test_mpirun_is_put_into_mindspores_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def adopted(job: str) -> dict[str, str]:
        environment = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3", "PMIX_NAMESPACE": job}
        environment |= {"OMPI_COMMAND": "python", "PMIX_RANK": "3"}
        monkeypatch.setattr(distributed.os, "environ", environment)
        distributed.adopt_mpirun()
        return environment

    found = adopted("1815937025")
    assert (found["MS_ROLE"], found["MS_WORKER_NUM"], found["MS_NODE_ID"]) == ("MS_WORKER", "4", "3")
    assert found["MS_SCHED_HOST"] == "127.0.0.1"
    assert 1024 < int(found["MS_SCHED_PORT"]) < 32768
    assert not {"OMPI_COMMAND", "PMIX_RANK"} & set(found)
    assert adopted("1815937025") == found
    assert adopted("1815937026")["MS_SCHED_PORT"] != found["MS_SCHED_PORT"]  # another job on the same machine


def test_a_rank_leaves_nothing_behind(tmp_path: Path) -> None:
    """It ends without Python's own way out, which would take MindSpore apart, and cleans up by itself."""
    code = """
import atexit
from gm.runtime import backend, compile_cache, distributed
class Scheduler:
    def kill(self): print("killed", flush=True)
atexit.register(print, "the usual way")
print(compile_cache._folder())
distributed._leave(Scheduler(), 3)
"""
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    folder, killed = ended.stdout.splitlines()
    assert (killed, ended.returncode) == ("killed", 3)
    assert folder.startswith(str(tmp_path))
    assert not Path(folder).exists()


def test_the_rank_with_the_scheduler_leaves_first() -> None:
    """Its last collective fails if the others are gone before they have confirmed it."""
    code = """
from gm.runtime import backend, distributed
print("leaves", flush=True)
distributed._leave(None, 0)
"""
    with socket.create_server(("127.0.0.1", 0)) as scheduler:
        address = {"MS_SCHED_HOST": "127.0.0.1", "MS_SCHED_PORT": str(scheduler.getsockname()[1])}
        command, environment = [sys.executable, "-c", code], {**os.environ, **address}
        rank = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
        until(rank, "leaves")
        time.sleep(1)
        assert rank.poll() is None
    assert rank.wait(timeout=30) == 0
