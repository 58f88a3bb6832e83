"""Compiled graphs kept between processes, each under a hash of everything that made it.

MindSpore has a cache of its own, which tells graphs apart by the order in which a process compiles them, in one folder
a process: it ran another model's graph and a batch of two on the graph of four. Here every process has a folder of its
own for that cache, into which a graph is laid just before it is asked for, and from which a new one is taken. A file
that is damaged is compiled again, as one that is not there.

`GM_GRAPHS` names another folder than the user's cache folder; empty, nothing is kept.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Without it MindSpore takes no graph that another script has compiled, though it be the same. The key is stricter.
os.environ["MS_DEV_FORCE_USE_COMPILE_CACHE"] = "1"

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

_MOST = 64  # graphs that are kept; the one that was used longest ago goes first
_number = itertools.count()  # of the next graph that MindSpore's cache is asked for


def cache_dir() -> Path | None:
    """Return the folder of the kept graphs; None if nothing is to be kept."""
    chosen = os.environ.get("GM_GRAPHS")
    if chosen is not None:
        return Path(chosen) if chosen else None
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "sdxl-textual-inversion" / "graphs"


def cache_file(cell: nn.Cell, inputs: tuple[Any, ...], where: object) -> Path | None:
    """Return the file that keeps the graph of `cell` for inputs like these, run at `where`.

    None if nothing is to be kept, or if something in the cell has no lasting description.
    """
    folder = cache_dir()
    if folder is None:
        return None
    described = repr((_versions(), where, [_described(x, {}) for x in inputs], _structure(cell)))
    sources = _sources(frozenset(type(c).__module__ for _, c in cell.cells_and_names()))
    if sources is None or re.search(r" at 0x[0-9a-f]+", described):
        return None
    return folder / f"{hashlib.sha256((described + sources).encode()).hexdigest()[:32]}.mindir"


@contextlib.contextmanager
def cached(file: Path | None, rank: int) -> Iterator[None]:
    """Compile one graph inside: it is read from `file` if that is there, and written to it otherwise."""
    if file is None:
        yield
        return
    role = os.environ.get("MS_ROLE", "")  # of a process among others on the CPU
    ours = _folder() / f"rank_{rank}" / "graph_cache" / f"{role}compile_cache_{next(_number)}.mindir"
    ours.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError):
        shutil.copyfile(file, ours)
        os.utime(file)
    before = _stamp(ours)
    ms.set_context(enable_compile_cache=True, compile_cache_path=str(_folder()))
    try:
        yield
    finally:
        ms.set_context(enable_compile_cache=False)
    if _stamp(ours) not in (before, None):
        _keep(ours, file)
    ours.unlink(missing_ok=True)


def _keep(ours: Path, file: Path) -> None:
    """Move a graph among those that are kept; a folder that cannot be written to costs the graph, and nothing else."""
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(f".{os.getpid()}.tmp")
        shutil.copyfile(ours, temporary)
        os.replace(temporary, file)
        by_age = sorted(file.parent.glob("*.mindir"), key=lambda path: path.stat().st_mtime)
        for old in by_age[:-_MOST]:
            old.unlink(missing_ok=True)


def _stamp(path: Path) -> tuple[int, int] | None:
    with contextlib.suppress(OSError):
        status = path.stat()
        return status.st_mtime_ns, status.st_size
    return None


@functools.cache
def _folder() -> Path:
    """Return this process's folder for MindSpore's cache, which goes with the process."""
    made = tempfile.TemporaryDirectory(prefix="graphs-")
    _open.append(made)
    return Path(made.name)


def cleanup() -> None:
    """Remove this process's folder, where it ends without Python doing so."""
    for made in _open:
        made.cleanup()


_open: list[tempfile.TemporaryDirectory] = []


def _versions() -> tuple[str, ...]:
    return ms.__version__, np.__version__, platform.python_version(), platform.machine()


@functools.cache
def _sources(modules: frozenset[str]) -> str | None:
    """Return a hash of the toolkit and of every other module whose Cells are in a graph; None without their source."""
    files = set(Path(__file__).parents[1].rglob("*.py"))
    for name in modules:
        if not name.startswith("mindspore."):
            file = getattr(sys.modules.get(name), "__file__", None)
            if file is None:
                return None
            files.add(Path(file))
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def _structure(cell: nn.Cell) -> list[Any]:
    """Return what every Cell in `cell` is and holds: numbers, words, constants, operators, the shapes of parameters."""
    names = {id(part): name for name, part in cell.cells_and_names()}
    common = vars(nn.Cell())
    return [
        (
            *(name, type(part).__qualname__, part._recompute_cell is not None),
            [_described(parameter, names) for _, parameter in part.parameters_and_names(expand=False)],
            [(k, _described(v, names)) for k, v in vars(part).items() if k not in common],
        )
        for name, part in cell.cells_and_names()
    ]


def _described(value: Any, names: dict[int, str]) -> Any:
    if isinstance(value, nn.Cell):
        return names.get(id(value), repr(value))
    if isinstance(value, Parameter):
        return value.name, value.shape, str(value.dtype), value.requires_grad
    if isinstance(value, Tensor):
        # A graph's inputs are described by their shapes, a Cell's constants by what they are.
        content = hashlib.sha256(value.asnumpy().tobytes()).hexdigest() if names else ""
        return value.shape, str(value.dtype), content
    if isinstance(value, ops.Primitive):
        return repr(value), sorted((k, repr(v)) for k, v in value.attrs.items())
    if isinstance(value, list | tuple):
        return [_described(item, names) for item in value]
    if dataclasses.is_dataclass(value) or value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    return f"{type(value).__name__} {value!r}"
