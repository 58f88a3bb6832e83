"""Environment variables that MindSpore reads while it is imported; `gm` sets them before any module imports it."""

from __future__ import annotations

import importlib.metadata
import os
import zlib
from pathlib import Path

ASCEND_DEVICE_FILES = "davinci[0-9]*"  # created in /dev by the Ascend driver, one per card
# The scheduler's ports, below the range that systems assign by themselves.
_FIRST_PORT = 20000
_NUM_PORTS = 12000
_ONEDNN_ISA = "ONEDNN_MAX_CPU_ISA"
_AVX2 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2")  # its values without AVX-512


def prepare() -> None:
    """Set the variables; variables that the user has set stay."""
    if ascend_present():
        disable_backend_cache()
    else:
        adopt_mpirun()  # on Ascend MindSpore supports mpirun itself
        if convolution_needs_avx2():
            os.environ.setdefault(_ONEDNN_ISA, "AVX2")
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


def convolution_needs_avx2(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Return whether oneDNN must not use AVX-512: this MindSpore convolves with a reference loop there.

    MindSpore 2.9 and 2.10 carry oneDNN 3.10 instead of 2.2, and hand it plain weights, for which it has no AVX-512
    kernel: `ONEDNN_VERBOSE=dispatch` shows `jit_uni_ncsp:conv+ref:any` for a 3×3 convolution, 300 times slower than
    the kernel of 2.8. With AVX2 it takes another kernel.
    """
    try:
        version = importlib.metadata.version("mindspore")
        flags = cpuinfo.read_text()
    except (importlib.metadata.PackageNotFoundError, OSError):
        return False
    return tuple(int(part) for part in version.split(".")[:2]) >= (2, 9) and "avx512f" in flags


def onednn_message() -> str:
    """Return a sentence about the speed of convolution and products on this CPU; empty where nothing limits them."""
    if not convolution_needs_avx2():
        return ""
    version, isa = importlib.metadata.version("mindspore"), os.environ.get(_ONEDNN_ISA, "")
    if isa.upper() in _AVX2:
        return f"MindSpore {version} computes with AVX2 on this CPU; 2.8 uses AVX-512: up to 1.8 times faster steps"
    return f"{_ONEDNN_ISA}={isa} makes convolutions of MindSpore {version} 300 times slower on this CPU; unset it"


def disable_backend_cache() -> None:
    """Turn off the cache of Ascend's back end that MindSpore keeps beside every cached graph.

    Its files (`backend_compile_cache_N.mindir`, `.json` and `_backinfo.json`) name graphs by their number in the
    process and the card's number, so that they fit no other process (`MSBackendBase::CheckBackendInfoValid`). The
    variable is documented among MindSpore's environment variables.
    """
    options = [part for part in os.environ.get("MS_DEV_RUNTIME_CONF", "").split(",") if part]
    if not any(part.startswith("backend_compile_cache:") for part in options):
        os.environ["MS_DEV_RUNTIME_CONF"] = ",".join([*options, "backend_compile_cache:False"])


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
