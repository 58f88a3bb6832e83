"""Environment variables that MindSpore reads while it is imported; `gm` sets them before any module imports it."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

ASCEND_DEVICE_FILES = "davinci[0-9]*"  # created in /dev by the Ascend driver, one per card
# The scheduler's ports, below the range that systems assign by themselves.
_FIRST_PORT = 20000
_NUM_PORTS = 12000


def prepare() -> None:
    """Set the variables; variables that the user has set stay."""
    if not ascend_present():  # on Ascend MindSpore supports mpirun itself
        adopt_mpirun()
    os.environ.setdefault("GLOG_v", "3")  # MindSpore's errors only: its many warnings hide the toolkit's own messages
    # Without it MindSpore refuses a graph that another script compiled, even an identical one. The key that
    # `compile_cache` finds graphs by is stricter.
    os.environ["MS_DEV_FORCE_USE_COMPILE_CACHE"] = "1"


def ascend_present() -> bool:
    """Return whether the Ascend driver shows a card on this machine."""
    return any(Path("/dev").glob(ASCEND_DEVICE_FILES))


def simulating() -> bool:
    """Return whether MindSpore simulates the Ascend driver: it then compiles for a card that is not there."""
    return bool(os.environ.get("MS_SIMULATION_LEVEL"))


def adopt_mpirun() -> None:
    """Translate mpirun's environment variables into those of MindSpore's own launcher.

    On the CPU backend `communication.init()` of MindSpore 2.7 to 2.10 fails under OpenMPI. It works, with MindSpore's
    built-in collectives, without the two variables removed here and with MS_* set. Ascend supports mpirun itself.
    """
    world_size = int(os.environ.get("OMPI_COMM_WORLD_SIZE", "1"))
    if world_size == 1 or "MS_ROLE" in os.environ:
        return
    rank = os.environ["OMPI_COMM_WORLD_RANK"]
    for name in ("OMPI_COMMAND", "PMIX_RANK"):
        os.environ.pop(name, None)
    os.environ.update(MS_ROLE="MS_WORKER", MS_WORKER_NUM=str(world_size), MS_NODE_ID=rank)
    os.environ.setdefault("MS_SCHED_HOST", "127.0.0.1")
    # All ranks of one mpirun, and those of no other on this machine, compute the same port.
    namespace = os.environ.get("PMIX_NAMESPACE", "")
    os.environ.setdefault("MS_SCHED_PORT", str(_FIRST_PORT + zlib.crc32(namespace.encode()) % _NUM_PORTS))
