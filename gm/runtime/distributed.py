"""How the processes of one run find one another, and how one leaves the others.

`backend` chooses the device, and calls `adopt_mpirun` before MindSpore is imported: here it is imported when asked for.
"""

from __future__ import annotations

import functools
import logging
import os
import socket
import subprocess
import sys
import time
import zlib

from gm.config import cli
from gm.errors import UserError

_STARTS, _CONFIRMS = 60, 10  # seconds that the scheduler may take to start, and the last collective to be confirmed
_FIRST_PORT, _PORTS = 20000, 12000  # of the scheduler, below the range that systems give away by themselves


def adopt_mpirun() -> None:
    """Describe the ranks that mpirun started in the words MindSpore's own launcher uses.

    On the CPU backend MindSpore 2.7 to 2.10 fails in `communication.init()` when it sees OpenMPI's own variables; with
    these two gone and MS_* set, its built-in collectives work. Another device takes mpirun as it is.
    """
    size = int(os.environ.get("OMPI_COMM_WORLD_SIZE", "1"))
    if size == 1 or "MS_ROLE" in os.environ:
        return
    rank = os.environ["OMPI_COMM_WORLD_RANK"]
    for name in ("OMPI_COMMAND", "PMIX_RANK"):
        os.environ.pop(name, None)
    os.environ.update(MS_ROLE="MS_WORKER", MS_WORKER_NUM=str(size), MS_NODE_ID=rank)
    os.environ.setdefault("MS_SCHED_HOST", "127.0.0.1")
    # Every rank of one job, and no other job on this machine, computes the same port.
    job = os.environ.get("PMIX_NAMESPACE", "")
    os.environ.setdefault("MS_SCHED_PORT", str(_FIRST_PORT + zlib.crc32(job.encode()) % _PORTS))


def num_processes() -> int:
    """Return how many processes a launcher started."""
    return int(os.environ.get("MS_WORKER_NUM", os.environ.get("OMPI_COMM_WORLD_SIZE", "1")))


def init(built_in: bool) -> tuple[int, int]:
    """Join the other processes, through MindSpore's `built_in` collectives or the device's own; return (rank, world).

    Raises UserError without a launcher or a scheduler that the former need.
    """
    from mindspore import communication

    if built_in and "MS_ROLE" not in os.environ:
        raise UserError("--is_parallel True needs several processes: mpirun -n N python train_textual_inversion.py …")
    scheduler = None
    if os.environ.get("MS_ROLE") == "MS_WORKER" and os.environ.get("OMPI_COMM_WORLD_RANK") == "0":
        scheduler = _start_scheduler()
    if built_in and os.environ["MS_ROLE"] == "MS_WORKER":  # msrun runs the script as the scheduler, too
        _await_scheduler()
    communication.init()
    if built_in and "OMPI_COMM_WORLD_RANK" in os.environ:  # msrun's scheduler would miss ranks that leave so
        cli.exit_hooks.append(functools.partial(_leave, scheduler))
    return communication.get_rank(), communication.get_group_size()


def _leave(scheduler: subprocess.Popen | None, code: int) -> None:
    """End this rank, and its `scheduler`, without MindSpore's own end, which crashes now and then on a busy machine.

    The rank with the scheduler goes first. It is the one that sends the others the result of the last collective, and
    fails if one of them is gone before all have confirmed it.
    """
    from gm.runtime import compile_cache

    compile_cache.cleanup()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    if scheduler:
        scheduler.kill()
    else:
        _until(listening=False, seconds=_CONFIRMS)
    os._exit(code)


def _start_scheduler() -> subprocess.Popen:
    """Start the process through which the ranks of the CPU backend find one another; it ends with them."""
    environment = dict(os.environ, MS_ROLE="MS_SCHED")
    environment.pop("MS_NODE_ID", None)
    code = "import mindspore as ms; ms.set_device('CPU'); ms.communication.init()"
    return subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.DEVNULL)


def _await_scheduler() -> None:
    """Wait until the scheduler listens: a rank that calls before it does is let in only after a minute of retries."""
    if not _until(listening=True, seconds=_STARTS):
        host, port = _scheduler()
        raise UserError(f"no scheduler answers at {host}:{port}; set MS_SCHED_HOST and MS_SCHED_PORT to it")


def _until(listening: bool, seconds: float) -> bool:
    """Wait at most `seconds` until the scheduler is `listening`, or is no more; return whether that came true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            socket.create_connection(_scheduler(), timeout=1).close()
            found = True
        except OSError:
            found = False
        if found == listening:
            return True
        time.sleep(0.1)
    return False


def _scheduler() -> tuple[str, int]:
    return os.environ["MS_SCHED_HOST"], int(os.environ["MS_SCHED_PORT"])
