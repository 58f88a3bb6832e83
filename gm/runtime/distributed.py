"""Process groups: how ranks started by mpirun or msrun find each other, and how a rank ends."""

from __future__ import annotations

import functools
import logging
import math
import os
import socket
import subprocess
import sys
import time

from gm.config import cli
from gm.errors import UserError

log = logging.getLogger("gm")

# Seconds that ranks wait for each other. On Ascend rank 0 may compile for long while the others wait.
DEFAULT_TIMEOUT = {"CPU": 1800.0, "Ascend": 7200.0}
# HCCL's limits of its own timeouts, in seconds: CANN's documentation of HCCL_CONNECT_TIMEOUT and HCCL_EXEC_TIMEOUT
# (for Atlas training cards; later ones allow more). Ascend 910 rounds the latter down to a multiple of 68.
_CONNECT_SECONDS = (120, 7200)
_EXEC_UNIT = 68
_MAX_EXEC_SECONDS = 17340
_START_SECONDS = 60  # that the scheduler may take to start
_CONFIRM_SECONDS = 10  # that the ranks may take to confirm the last collective


def num_processes() -> int:
    """Return the number of processes that a launcher started."""
    return int(os.environ.get("MS_WORKER_NUM", os.environ.get("OMPI_COMM_WORLD_SIZE", "1")))


def set_hccl_timeouts(timeout: float) -> None:
    """Let HCCL wait at least `timeout` seconds, as far as it can: its defaults are 120 s to connect and 1,836 s to act.

    HCCL reads the variables when it starts. Those that the user has set stay. Where both limits are possible, HCCL's
    own end later than `Backend.timeout`, whose message says what to do.
    """
    connect = min(max(math.ceil(timeout), _CONNECT_SECONDS[0]), _CONNECT_SECONDS[1])
    execute = min((math.floor(timeout / _EXEC_UNIT) + 1) * _EXEC_UNIT, _MAX_EXEC_SECONDS)
    for name, seconds in (("HCCL_CONNECT_TIMEOUT", connect), ("HCCL_EXEC_TIMEOUT", execute)):
        value = os.environ.setdefault(name, str(seconds))
        if value.isdecimal() and 0 < int(value) < timeout:
            log.warning("HCCL waits %s s, less than --distributed_timeout %g: %s", value, timeout, name)


def init(built_in: bool) -> tuple[int, int]:
    """Join the process group, through MindSpore's `built_in` collectives or the device's; return (rank, world size).

    Raises UserError if the built-in collectives find no launcher or no scheduler.
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
    if built_in and "OMPI_COMM_WORLD_RANK" in os.environ:  # msrun's scheduler expects that ranks end normally
        cli.exit_hooks.append(functools.partial(_exit_rank, scheduler))
    return communication.get_rank(), communication.get_group_size()


def _exit_rank(scheduler: subprocess.Popen | None, code: int) -> None:
    """End this rank, and its `scheduler`, without MindSpore's shutdown, which sometimes crashes on a busy machine.

    The rank that started the scheduler ends first, the others when they no longer reach it: that rank sends them the
    result of the last collective, and fails if one of them has ended before all have confirmed it.
    """
    from gm.runtime import compile_cache

    compile_cache.cleanup()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    if scheduler:
        scheduler.kill()
    else:
        _wait_for_scheduler(listening=False, seconds=_CONFIRM_SECONDS)
    os._exit(code)


def _start_scheduler() -> subprocess.Popen:
    """Start the process through which the ranks of the CPU backend find each other; rank 0 ends it."""
    environment = dict(os.environ, MS_ROLE="MS_SCHED")
    environment.pop("MS_NODE_ID", None)
    code = "import mindspore as ms; ms.set_device('CPU'); ms.communication.init()"
    return subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.DEVNULL)


def _await_scheduler() -> None:
    """Wait until the scheduler listens: MindSpore retries a connection that failed only after a minute."""
    if not _wait_for_scheduler(listening=True, seconds=_START_SECONDS):
        host, port = _scheduler_address()
        raise UserError(f"no scheduler answers at {host}:{port}; set MS_SCHED_HOST and MS_SCHED_PORT to it")


def _wait_for_scheduler(listening: bool, seconds: float) -> bool:
    """Wait at most `seconds` until the scheduler listens, or no longer does; return whether it came to that."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            socket.create_connection(_scheduler_address(), timeout=1).close()
            connected = True
        except OSError:
            connected = False
        if connected == listening:
            return True
        time.sleep(0.1)
    return False


def _scheduler_address() -> tuple[str, int]:
    return os.environ["MS_SCHED_HOST"], int(os.environ["MS_SCHED_PORT"])
