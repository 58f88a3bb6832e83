"""Several processes as one run: they find each other, stop together, end together, and resume in any number."""

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
from gm.runtime import distributed, environment
from gm.training import checkpoint
from tests.project import MPIRUN, Workshop

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ("--is_parallel", "True", "--gradient_accumulation_steps", "2", "--total_step", "20")
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="module")
def uninterrupted(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the output folder of twenty uninterrupted steps by two ranks."""
    folder = tmp_path_factory.mktemp("ranks") / "uninterrupted"
    command = [*MPIRUN, sys.executable, "train_textual_inversion.py", "--config", str(workshop.yaml)]
    command += ["--save_path", str(folder), *FLAGS]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)
    return folder


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


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """Return the output of the process up to a line that contains `text`."""
    assert process.stdout
    output = ""
    for line in process.stdout:
        output += line
        if text in line:
            return output
    raise AssertionError(output)


def wait_for_step(folder: Path, step: int) -> None:
    """Wait until a run has logged `step`."""
    log = folder / "log.jsonl"
    for _ in range(600):
        if log.exists() and f'"step": {step},' in log.read_text():
            return
        time.sleep(0.1)
    raise AssertionError(f"no step {step} in a minute")


def pids(launcher: subprocess.Popen[str]) -> list[int]:
    """Return the processes that mpirun started, by rank."""
    by_rank = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            environment = (entry / "environ").read_bytes().split(b"\0")
            parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except (OSError, IndexError):
            continue
        rank = [value for value in environment if value.startswith(b"OMPI_COMM_WORLD_RANK=")]
        if parent == launcher.pid and rank:
            by_rank[int(rank[0].split(b"=")[1])] = int(entry.name)
    return [by_rank[rank] for rank in sorted(by_rank)]


def alive(pid: int) -> bool:
    """Return whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def embedding_vectors(folder: Path, step: int) -> np.ndarray:
    embedding = embedding_io.load(folder / f"smallest_{step}_ti.ckpt")
    return np.concatenate([embedding.vectors["clip_l"].ravel(), embedding.vectors["clip_g"].ravel()])


@pytest.mark.e2e
@pytest.mark.parametrize("recipient", ["launcher", "second rank"])
def test_ranks_stop_together_and_resume_bit_for_bit(
    start: Start, uninterrupted: Path, tmp_path: Path, recipient: str
) -> None:
    flags = (*FLAGS, "--resume", "latest")
    process = start(MPIRUN, "parts", *flags)
    wait_for_step(tmp_path / "parts", 5)
    # mpirun forwards USR1 to all ranks; sent to a rank, it reaches that one only.
    os.kill(process.pid if recipient == "launcher" else pids(process)[1], signal.SIGUSR1)
    output = process.communicate(timeout=60)[0]
    assert process.returncode > 128, output  # mpirun kills a rank that ends later than another
    assert "stopped after step" in output
    stopped = checkpoint.find("latest", tmp_path / "parts")
    assert stopped
    assert 5 <= stopped.step < 20
    assert stopped.step % 2 == 0  # between updates the ranks have different gradient sums
    assert f"stopped after step {stopped.step} of 20" in output
    process = start(MPIRUN, "parts", *flags)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    assert f"after step {stopped.step}" in output
    assert np.array_equal(embedding_vectors(tmp_path / "parts", 20), embedding_vectors(uninterrupted, 20))


@pytest.mark.e2e
def test_a_rank_that_dies_ends_the_others_and_fewer_ranks_resume(start: Start, tmp_path: Path) -> None:
    process = start(MPIRUN, "run", "--is_parallel", "True", "--total_step", "100000")
    wait_for_step(tmp_path / "run", 6)
    both = pids(process)
    os.kill(both[1], signal.SIGKILL)
    died = time.monotonic()
    output = process.communicate(timeout=60)[0]
    assert process.returncode != 0
    assert "exited on signal 9" in output  # mpirun names the signal
    while any(alive(pid) for pid in both):
        assert time.monotonic() - died < 30
        time.sleep(0.1)
    stopped = checkpoint.find("latest", tmp_path / "run")
    assert stopped
    assert stopped.step >= 4
    alone = start((), "run", "--total_step", str(stopped.step + 2), "--resume", "latest")
    output = alone.communicate(timeout=60)[0]
    assert alone.returncode == 0, output
    assert "--resume: training.is_parallel has changed: True → False" in output
    assert np.isfinite(embedding_vectors(tmp_path / "run", stopped.step + 2)).all()


@pytest.mark.e2e
def test_ranks_time_out_without_a_launcher_that_notices(start: Start, tmp_path: Path) -> None:
    port = str(20000 + os.getpid() % 10000)
    world = {"OMPI_COMM_WORLD_SIZE": "2", "MS_SCHED_PORT": port}
    flags = ("--is_parallel", "True", "--total_step", "100000", "--distributed_timeout", "5")
    both = [start((), "run", *flags, **world, OMPI_COMM_WORLD_RANK=rank) for rank in ("0", "1")]
    wait_for_step(tmp_path / "run", 6)
    both[1].kill()
    output = both[0].communicate(timeout=60)[0]
    assert both[0].returncode == 1, output
    assert "error: rank 0 has waited 5 s for the other ranks" in output
    assert checkpoint.find("latest", tmp_path / "run")


def test_mpirun_is_translated_to_mindspores_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    def adopted(namespace: str) -> dict[str, str]:
        variables = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3", "PMIX_NAMESPACE": namespace}
        variables |= {"OMPI_COMMAND": "python", "PMIX_RANK": "3"}
        monkeypatch.setattr(environment.os, "environ", variables)
        environment.adopt_mpirun()
        return variables

    variables = adopted("1815937025")
    assert (variables["MS_ROLE"], variables["MS_WORKER_NUM"], variables["MS_NODE_ID"]) == ("MS_WORKER", "4", "3")
    assert variables["MS_SCHED_HOST"] == "127.0.0.1"
    assert 1024 < int(variables["MS_SCHED_PORT"]) < 32768
    assert not {"OMPI_COMMAND", "PMIX_RANK"} & set(variables)
    assert adopted("1815937025") == variables
    assert adopted("1815937026")["MS_SCHED_PORT"] != variables["MS_SCHED_PORT"]  # another mpirun on the same machine


@pytest.mark.parametrize(
    ("timeout", "connect", "execute"),
    [
        (7200, "7200", "7208"),
        (1800, "1800", "1836"),
        (60, "120", "68"),  # HCCL's least
        (68, "120", "136"),  # HCCL rounds down to multiples of 68: longer than the toolkit's own wait
        (100000, "7200", "17340"),  # HCCL's most
    ],
)
def test_hccl_waits_as_long_as_the_toolkit(
    timeout: float, connect: str, execute: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables: dict[str, str] = {}
    monkeypatch.setattr(distributed.os, "environ", variables)
    distributed.set_hccl_timeouts(timeout)
    assert variables == {"HCCL_CONNECT_TIMEOUT": connect, "HCCL_EXEC_TIMEOUT": execute}


def test_hccls_timeouts_that_the_user_has_set_stay(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    variables = {"HCCL_CONNECT_TIMEOUT": "300", "HCCL_EXEC_TIMEOUT": "0"}  # 0: without end
    monkeypatch.setattr(distributed.os, "environ", variables)
    distributed.set_hccl_timeouts(7200)
    assert variables == {"HCCL_CONNECT_TIMEOUT": "300", "HCCL_EXEC_TIMEOUT": "0"}
    assert caplog.messages == ["HCCL waits 300 s, less than --distributed_timeout 7200: HCCL_CONNECT_TIMEOUT"]


@pytest.mark.e2e
def test_a_rank_leaves_no_files_behind(tmp_path: Path) -> None:
    """It ends without Python's shutdown, and so removes its folder itself."""
    code = """
import atexit
from gm.runtime import backend, compile_cache, distributed
class Scheduler:
    def kill(self): print("killed", flush=True)
atexit.register(print, "Python shutdown")
print(compile_cache._process_dir())
distributed._exit_rank(Scheduler(), 3)
"""
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    folder, killed = ended.stdout.splitlines()
    assert (killed, ended.returncode) == ("killed", 3)
    assert folder.startswith(str(tmp_path))
    assert not Path(folder).exists()


@pytest.mark.e2e
def test_the_rank_with_the_scheduler_ends_first() -> None:
    """Its last collective fails if the others end before they have confirmed it."""
    code = """
from gm.runtime import backend, distributed
print("leaves", flush=True)
distributed._exit_rank(None, 0)
"""
    with socket.create_server(("127.0.0.1", 0)) as scheduler:
        address = {"MS_SCHED_HOST": "127.0.0.1", "MS_SCHED_PORT": str(scheduler.getsockname()[1])}
        command, environment = [sys.executable, "-c", code], {**os.environ, **address}
        rank = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
        read_until(rank, "leaves")
        time.sleep(1)
        assert rank.poll() is None
    assert rank.wait(timeout=30) == 0
