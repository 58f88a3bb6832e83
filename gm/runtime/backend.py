"""Device, precision and compiled graphs of a process.

The code that needs an Ascend card has not been run on one yet. It is small: choices are in this file and the others of
this package, kernels in `gm.ops.ascend`.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mindspore as ms
from mindspore import Tensor, nn, ops

from gm.config import RunConfig
from gm.errors import UserError
from gm.runtime import compile_cache, devices, distributed, float_status, onednn
from gm.runtime.devices import DType
from gm.runtime.duration import format_duration
from gm.runtime.environment import ascend_present, onednn_message, simulating

log = logging.getLogger("gm")

# Measured on two CPU cores, with the gradient: 12, 26, 61 s to compile 471, 852, 2,298 Cells; 1.5, 4.4, 12 s to read
# the graph from the compile cache.
_SECONDS_PER_CELL = 0.014
_CACHED_SHARE = 0.2
# Number of values from which on a weight stays in half precision, by `low_memory`. Full size has 3.39 billion values:
# 1.1 billion are in the 77 weights above the limit of "some", nearly all above that of "most". They take 2.3 and 6.6 GB
# less, and cost 1 ns a value in each direction.
_KEEP_HALF_ABOVE = {"off": math.inf, "some": 2**23, "most": 2**20}
# Set by `setup`. Module variables, because code that MindSpore compiles cannot query the device.
_on_ascend = False
_rank = 0
_world_size = 1
_target: tuple[object, ...] = ()  # dependencies of a compiled graph besides its Cell
_flash_attention = "off"
_in_graph = False  # set by `compile_cell`
# Input shapes and dtypes for which a Cell has been compiled.
_compiled_shapes: weakref.WeakKeyDictionary[nn.Cell, set[Any]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Backend:
    """Device, execution mode, precision and process group that `setup` chose.

    `graph` is graph mode, otherwise PyNative. Networks compute in `dtype`. This process is `rank` of `world_size`.
    Weights of at least `keep_half_above` values may stay in half precision in memory. Ranks wait `timeout` seconds for
    each other.
    """

    device: str
    graph: bool
    dtype: DType
    rank: int = 0
    world_size: int = 1
    keep_half_above: float = math.inf
    timeout: float = 1800.0

    @property
    def is_main_process(self) -> bool:
        """Whether this process writes files and progress."""
        return self.rank == 0

    def all_reduce_mean(self, values: Sequence[float]) -> list[float]:
        """Return the mean over all ranks of each of `values`; every rank must call it."""
        return self.launch_all_reduce_mean(values)()

    def launch_all_reduce_mean(self, values: Sequence[float | Tensor]) -> Callable[[], list[float]]:
        """Start to reduce `values`, floats and scalar tensors; return the function that waits for the means.

        The device reduces them once it has computed them; Python does not wait for it here.
        """
        if self.world_size == 1:
            return lambda: [float(value) for value in values]
        with self.abort_after_timeout():
            scalars = [ops.cast(x, ms.float32) if isinstance(x, Tensor) else Tensor(x, ms.float32) for x in values]
            means = AllReduceMean(self.world_size)(ops.stack(scalars))

        def read() -> list[float]:
            with self.abort_after_timeout():
                result: list[float] = means.asnumpy().tolist()
            return result

        return read

    @contextlib.contextmanager
    def abort_after_timeout(self) -> Iterator[None]:
        """End this process with a message if the block, which communicates with other ranks, exceeds `timeout`.

        A launcher ends all ranks when one dies; this covers the cases it does not notice, such as a broken network.
        """
        if self.world_size == 1:
            yield
            return
        timer = threading.Timer(self.timeout, self._abort)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _abort(self) -> None:
        waited = format_duration(self.timeout)
        print(
            f"error: rank {self.rank} has waited {waited} for the other ranks: one has ended, hangs, or is slower than "
            "--distributed_timeout allows; start again with --resume latest",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)  # no exception reaches the main thread while it waits inside a collective

    def barrier(self) -> None:
        """Wait until every rank is here; every rank must call it before it ends.

        On the CPU backend a rank that ends while others work may crash, and mpirun then ends the others, too.
        """
        self.all_reduce_mean([0.0])


def setup(run: RunConfig, is_parallel: bool = False, timeout: float | None = None) -> Backend:
    """Choose the device and join the process group; call it once, before any tensor is created.

    `timeout` is that of `Backend`; None is the device's default. Raises UserError for a missing device, a precision
    that the device lacks, and processes without `--is_parallel`.
    """
    device = run.device_target or ("Ascend" if ascend_present() else "CPU")
    if device == "Ascend" and not (ascend_present() or simulating()):
        raise UserError("no Ascend card on this machine (no /dev/davinci*); use --device_target CPU")
    processes = distributed.num_processes()
    if processes > 1 and not is_parallel:
        raise UserError(f"{processes} processes were started without --is_parallel True; add it, or start one process")
    if not run.device_target:
        log.info("running on %s; --device_target chooses", device)
    global _on_ascend, _rank, _world_size, _target, _flash_attention
    _on_ascend = device == "Ascend"
    devices.select(device, run)
    if _on_ascend:
        float_status.check_environment()
    dtype = devices.weight_dtype(run.precision, device)
    _flash_attention = devices.flash_attention(device, run, dtype)
    # `compile_cell` compiles single Cells and caches them: MindSpore's own cache may return another Cell's graph.
    ms.set_context(mode=ms.PYNATIVE_MODE, enable_compile_cache=False)
    if device == "CPU":
        # The asynchronous PyNative pipeline spins on a core of its own: 2 to 20 times slower on the CPU backend.
        ms.runtime.launch_blocking()
    timeout = timeout or distributed.DEFAULT_TIMEOUT[device]
    if _on_ascend and is_parallel:
        distributed.set_hccl_timeouts(timeout)
    _rank, _world_size = distributed.init(built_in=device == "CPU") if is_parallel else (0, 1)
    target: tuple[object, ...] = (onednn.library(), _flash_attention)
    if _on_ascend:
        target = (devices.soc_version(), run.jit_level, _flash_attention)
    _target = (device, _world_size, *target)
    if _rank:
        log.setLevel(logging.WARNING)  # rank 0 logs for all
    else:
        _log_limits(device, run)
    low_memory = run.low_memory
    if low_memory == "auto":
        low_memory = "some" if device == "CPU" and run.ms_mode == 1 else "off"
    return Backend(device, run.ms_mode == 0, dtype, _rank, _world_size, _KEEP_HALF_ABOVE[low_memory], timeout)


def _log_limits(device: str, run: RunConfig) -> None:
    """Log which options have no effect on `device`, and what makes it slow."""
    for message in devices.unused_options(device, run):
        log.warning(message)
    if device == "CPU" and (message := onednn_message()):
        log.warning(message)


def on_ascend() -> bool:
    """Return whether `setup` chose Ascend; may be called in code that is being compiled."""
    return _on_ascend


def flash_attention() -> str:
    """Return whether attention uses the device's kernel: "off", "auto" (where it can) or "on" (always)."""
    return _flash_attention


def in_graph() -> bool:
    """Return whether a graph is being compiled or run, as opposed to operators launched one by one from Python."""
    return _in_graph


def compile_cell(cell: nn.Cell, graph: bool, label: str = "", gradient: bool = False) -> Callable[..., Any]:
    """Return `cell`, or, if `graph`, a function that runs it as a graph, compiled at the first call of each shape.

    Compiled graphs are cached for later processes (`gm.runtime.compile_cache`). Where compiling takes seconds, a log
    line announces it beforehand, with `label` and an estimate; `gradient` says that the cell differentiates.
    """
    if not graph:
        return cell
    # Of the Cell, not of this function: MindSpore does not compile a Cell again that another call had compiled.
    compiled_shapes = _compiled_shapes.setdefault(cell, set())

    def run(*inputs: Any) -> Any:
        shapes = tuple((getattr(x, "shape", x), str(getattr(x, "dtype", ""))) for x in inputs)
        # A graph that is called in PyNative mode runs on another thread, while the caller spins on a core that the
        # graph's kernels need: up to 6 times slower on the CPU backend. Called in graph mode, the caller sleeps.
        global _in_graph
        _in_graph = True
        ms.set_context(mode=ms.GRAPH_MODE)
        try:
            if shapes in compiled_shapes:
                return cell(*inputs)
            compiled_shapes.add(shapes)
            file = compile_cache.cache_file(cell, inputs, _target)
            cached = file is not None and file.exists()
            if label:
                _announce(cell, label, gradient, cached)
            if file and cached and compile_cache.compile_cached(cell, inputs, file, _rank):
                return cell(*inputs)
            with compile_cache.use(file, _rank):
                return cell(*inputs)
        finally:
            ms.set_context(mode=ms.PYNATIVE_MODE)
            _in_graph = False

    return run


def _announce(cell: nn.Cell, label: str, gradient: bool, cached: bool) -> None:
    """Log the estimated time to compile a graph, or to read it from the cache."""
    cells = sum(1 for _ in cell.cells_and_names())
    seconds = _SECONDS_PER_CELL * cells * (2 if gradient else 1) * (_CACHED_SHARE if cached else 1)
    if seconds >= 2:
        action = "reading the cached graph of" if cached else "compiling"
        log.info("%s %s: about %s, nothing moves meanwhile", action, label, format_duration(seconds))


class AllReduceMean(nn.Cell):
    """Mean of a tensor over `world_size` ranks; the identity for one rank."""

    def __init__(self, world_size: int) -> None:
        super().__init__()
        self.world_size = world_size
        self.sum = ops.AllReduce(ops.ReduceOp.SUM) if world_size > 1 else None

    def construct(self, x: Tensor) -> Tensor:
        return x if self.sum is None else self.sum(x) / self.world_size
