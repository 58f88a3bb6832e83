"""The only file that chooses by the device: which one, how it runs, its precision, its attention.

MindSpore is imported through this file first, because processes that mpirun started need their environment changed
before that import (see `gm.runtime.distributed`). What only runs on Ascend has not been run on hardware yet: it is kept
small, here, and each piece has a fallback that the tests use as the oracle of its interface.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gm.config import RunConfig
from gm.errors import UserError
from gm.runtime import distributed
from gm.runtime.progress import clock

log = logging.getLogger("gm")

ASCEND_DEVICE_FILES = "davinci[0-9]*"  # what the Ascend driver puts into /dev, one a card


def ascend_present() -> bool:
    """Return whether the driver of an Ascend card shows one on this machine."""
    return any(Path("/dev").glob(ASCEND_DEVICE_FILES))


if not ascend_present():  # Ascend takes mpirun as it is
    distributed.adopt_mpirun()
os.environ.setdefault("GLOG_v", "3")  # MindSpore's errors only: its warnings bury what the toolkit says

import mindspore as ms  # noqa: E402
from mindspore import Tensor, nn, ops  # noqa: E402

from gm.runtime import compile_cache  # noqa: E402

# With the gradient, two CPU cores took 12, 26, 61 s for 471, 852, 2,298 Cells, and 1.5, 4.4, 12 s if a graph was kept.
_SECONDS_A_CELL, _KEPT_SHARE = 0.014, 0.2
# Values from which on a weight stays narrow. Of full size's 3.39 billion, 1.1 are in the 77 weights of the middle row,
# nearly all in those of the last: 2.3 and 6.6 GB less, for 1 ns a value in each direction.
_WIDENED = {"off": math.inf, "some": 2**23, "most": 2**20}
# Set by `setup`; a graph cannot ask for the device while it is compiled.
_on_ascend, _rank, _world = False, 0, 1
_in_graph = False  # set by `compile_cell`


@dataclass(frozen=True)
class Backend:
    """What was set up: `rank` of `world` processes this one is.

    Networks compute in `dtype`. Weights of at least `keep_half_above` values may stay in memory as in their file.
    """

    device: str
    graph: bool
    dtype: Any
    rank: int = 0
    world: int = 1
    keep_half_above: float = math.inf
    timeout: float = 1800.0  # seconds that a rank waits for the others

    @property
    def is_main_process(self) -> bool:
        """Whether this process writes files and progress."""
        return self.rank == 0

    def all_reduce_mean(self, values: Sequence[float]) -> list[float]:
        """Return the mean over all ranks of each of `values`; every rank asks for it at the same moment."""
        if self.world == 1:
            return list(values)
        with self.abort_after_timeout():
            found: list[float] = AllReduceMean(self.world)(Tensor(values, ms.float32)).asnumpy().tolist()
        return found

    @contextlib.contextmanager
    def abort_after_timeout(self) -> Iterator[None]:
        """End this process, saying why, if the block, in which ranks talk to each other, takes longer than `timeout`.

        A launcher ends all ranks when one dies; this is for where it does not notice, as across a broken network.
        """
        if self.world == 1:
            yield
            return
        timer = threading.Timer(self.timeout, self._give_up)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _give_up(self) -> None:
        waited = clock(self.timeout)
        print(
            f"error: rank {self.rank} has waited {waited} for the other ranks: one has ended, hangs, or is slower than "
            "--distributed_timeout allows; start again with --resume latest",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)  # what waits cannot be told

    def barrier(self) -> None:
        """Wait until every rank is here, as all do before they end.

        On the CPU backend a rank that ends while others work may crash, and mpirun then ends the others, too.
        """
        self.all_reduce_mean([0.0])


def setup(run: RunConfig, is_parallel: bool = False, timeout: float = Backend.timeout) -> Backend:
    """Choose the device, once and before any tensor is made; ranks wait `timeout` seconds for each other.

    Raises UserError for a device that is not there, a precision it has not, or processes without `--is_parallel`.
    """
    device = run.device_target or ("Ascend" if ascend_present() else "CPU")
    if device == "Ascend" and not ascend_present():
        raise UserError("no Ascend card on this machine (no /dev/davinci*); use --device_target CPU")
    dtype = precision(run.precision, device)
    world = distributed.num_processes()
    if world > 1 and not is_parallel:
        raise UserError(f"{world} processes were started without --is_parallel True; add it, or start one process")
    if not run.device_target:
        log.info("running on %s; --device_target chooses", device)
    global _on_ascend, _rank, _world
    _on_ascend = device == "Ascend"
    ms.set_device(device)
    # `compile_cell` turns single Cells into graphs and keeps them; MindSpore's own cache would mistake one for another.
    ms.set_context(mode=ms.PYNATIVE_MODE, enable_compile_cache=False)
    if device == "CPU":
        # The asynchronous PyNative pipeline spins on a core of its own: 2 to 20 times slower on the CPU backend.
        ms.runtime.launch_blocking()
        _warn_of_slow_convolution(ms.__version__)
    _rank, _world = distributed.init(device == "CPU") if is_parallel else (0, 1)
    if _rank:
        log.setLevel(logging.WARNING)  # the first rank tells what all of them do
    low_memory = run.low_memory
    if low_memory == "auto":
        low_memory = "some" if device == "CPU" and run.ms_mode == 1 else "off"
    return Backend(device, run.ms_mode == 0, dtype, _rank, _world, _WIDENED[low_memory], timeout)


def on_ascend() -> bool:
    """Return whether `setup` chose Ascend, also while a graph is compiled."""
    return _on_ascend


def in_graph() -> bool:
    """Return whether a graph runs or is compiled, rather than one operator after the other from Python."""
    return _in_graph


def precision(name: str, device: str) -> Any:
    """Return MindSpore's dtype for the frozen weights; UserError where the device lacks it."""
    if name == "auto":
        name = "float16" if device == "Ascend" else "float32"
    if device == "CPU" and name == "bfloat16":
        raise UserError("the CPU backend has no bfloat16; use --precision float32")
    return {"float32": ms.float32, "float16": ms.float16, "bfloat16": ms.bfloat16}[name]


def compile_cell(cell: nn.Cell, graph: bool, what: str = "", gradient: bool = False) -> Callable[..., Any]:
    """Return `cell`, or, if `graph`, a function that runs it as a graph, compiled on first call (once a shape).

    A graph is kept for later processes (`gm.runtime.compile_cache`). Where compiling takes more than a moment, a log
    line says before that `what` is compiled and for about how long; `gradient` tells that the cell differentiates.
    """
    if not graph:
        return cell
    known = set()

    def run(*inputs: Any) -> Any:
        shapes = tuple((getattr(x, "shape", x), str(getattr(x, "dtype", ""))) for x in inputs)
        # In PyNative mode the caller hands the graph to another thread and spins until it is done, on a core that the
        # graph's kernels need: up to 6 times slower on the CPU backend. In graph mode it sleeps.
        global _in_graph
        _in_graph = True
        ms.set_context(mode=ms.GRAPH_MODE)
        try:
            if shapes in known:
                return cell(*inputs)
            known.add(shapes)
            file = compile_cache.cache_file(cell, inputs, (_on_ascend, _world))
            if what:
                _announce(cell, what, gradient, file is not None and file.exists())
            with compile_cache.cached(file, _rank):
                return cell(*inputs)
        finally:
            ms.set_context(mode=ms.PYNATIVE_MODE)
            _in_graph = False

    return run


def _announce(cell: nn.Cell, what: str, gradient: bool, kept: bool) -> None:
    """Say about how long a graph takes that is compiled now, or that is read because an earlier process kept it."""
    cells = sum(1 for _ in cell.cells_and_names())
    seconds = _SECONDS_A_CELL * cells * (2 if gradient else 1) * (_KEPT_SHARE if kept else 1)
    if seconds >= 2:
        doing = "reading the kept graph of" if kept else "compiling"
        log.info("%s %s: about %s, nothing moves meanwhile", doing, what, clock(seconds))


def flash_attention(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    """softmax(QKᵀ/√d)V by Ascend's kernel, in half precision: query [N, heads, L, d], key, value [N, heads, S, d]."""
    length, heads, width = query.shape[2], query.shape[1], query.shape[3]
    # The kernel's mask marks what to discard, and its scale defaults to 1.
    mask = ops.triu(ops.ones((length, length), ms.uint8), diagonal=1) if causal else None
    return ops.flash_attention_score(
        query, key, value, heads, attn_mask=mask, scalar_value=1.0 / math.sqrt(width), input_layout="BNSD"
    )


class AllReduceMean(nn.Cell):
    """Averages a tensor over `world` ranks; one rank gets it back as it is."""

    def __init__(self, world: int) -> None:
        super().__init__()
        self.world = world
        self.add = ops.AllReduce(ops.ReduceOp.SUM) if world > 1 else None

    def construct(self, x: Tensor) -> Tensor:
        return x if self.add is None else self.add(x) / self.world


def _warn_of_slow_convolution(version: str) -> None:
    if tuple(int(part) for part in version.split(".")[:2]) >= (2, 9):
        log.warning(
            "MindSpore %s convolves about 100 times slower on CPU than 2.8: pip install mindspore==2.8.0", version
        )
