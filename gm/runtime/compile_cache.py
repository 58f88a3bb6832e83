"""Compiled graphs cached between processes, each under a hash of everything that determines it.

MindSpore's own cache identifies a graph by the order in which a process compiles it, in one folder per process: with
2.8 it ran another model's graph, and a batch of two on the graph of four. Here every process has a temporary folder for
MindSpore's cache; a cached graph is copied into it just before MindSpore asks for it, and a new one is copied out
afterwards. A damaged file is compiled again, like a missing one, and so is one that the device does not accept. Only
the graph of MindSpore's front end is cached: see `environment.disable_backend_cache`.

The environment variable `GM_GRAPHS` replaces the folder in the user's cache folder; empty, it turns the cache off.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import logging
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

try:
    from mindspore.graph import api  # since 2.9
except ImportError:
    from mindspore.common import api

from gm.errors import shorten

log = logging.getLogger("gm")

_MAX_GRAPHS = 64  # above it, the least recently used graph is deleted
_next_number = 0  # MindSpore numbers the graphs of a process in the order of their compilation


def cache_dir() -> Path | None:
    """Return the folder of the cached graphs; None if the cache is off."""
    chosen = os.environ.get("GM_GRAPHS")
    if chosen is not None:
        return Path(chosen) if chosen else None
    user_cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(user_cache) / "sdxl-textual-inversion" / "graphs"


def cache_file(cell: nn.Cell, inputs: tuple[Any, ...], target: object) -> Path | None:
    """Return the file for the graph of `cell`, compiled for the shapes of `inputs` and for the device `target`.

    None if the cache is off, or if the cell has an attribute without a description that is stable over processes.
    """
    folder = cache_dir()
    if folder is None:
        return None
    key = repr((_versions(), target, [_describe(x, {}) for x in inputs], _describe_cells(cell)))
    sources = _hash_sources(frozenset(type(c).__module__ for _, c in cell.cells_and_names()))
    if sources is None or re.search(r" at 0x[0-9a-f]+", key):
        return None
    return folder / f"{hashlib.sha256((key + sources).encode()).hexdigest()[:32]}.mindir"


def compile_cached(cell: nn.Cell, inputs: tuple[Any, ...], file: Path, rank: int) -> bool:
    """Compile `cell` for `inputs` from the cached graph `file`, without running it; return whether that succeeded.

    A graph that the device does not accept is deleted. Running it is left out, since a step must not run twice.
    """
    try:
        with use(file, rank):
            cell.compile(*inputs)
    except Exception as error:  # MindSpore raises many kinds, and the graph can be compiled without the file
        reason = str(error).strip().split("\n")[0]
        log.warning("the cached graph %s does not load (%s): compiling instead", file, shorten(reason))
        file.unlink(missing_ok=True)
        return False
    return True


@contextlib.contextmanager
def use(file: Path | None, rank: int) -> Iterator[None]:
    """Let the one graph that is compiled in the block be read from `file`, or written to it if it is not there yet."""
    if file is None:
        yield
        return
    global _next_number
    role = os.environ.get("MS_ROLE", "")  # part of MindSpore's file name where processes find each other through MS_*
    folder, prefix = _process_dir() / f"rank_{rank}" / "graph_cache", f"{role}compile_cache_"
    expected = folder / f"{prefix}{_next_number}.mindir"
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError):
        shutil.copyfile(file, expected)
        os.utime(file)
    before = _stat(expected)
    _provide_entry_script()
    ms.set_context(enable_compile_cache=True, compile_cache_path=str(_process_dir()))
    try:
        yield
    finally:
        ms.set_context(enable_compile_cache=False)
        _next_number += 1
        for path in folder.glob(f"{prefix}*.mindir"):
            if path != expected:  # what MindSpore wrote tells its number, which differs after a Cell it did not compile
                _next_number = int(path.stem.removeprefix(prefix)) + 1
            if path != expected or _stat(path) != before:
                _store(path, file)
            path.unlink()


def _provide_entry_script() -> None:
    """Give MindSpore a script to look for dependencies in, where the process was not started from a file.

    Its cache parses the file that `sys.argv[0]` named at the import: FileNotFoundError under `python -c`.
    """
    if not Path(getattr(api, "entry_script_path", None) or "").is_file():
        api.entry_script_path = __file__


def _store(new: Path, file: Path) -> None:
    """Copy a new graph into the cache; if the folder is not writable, it is compiled again next time."""
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(f".{os.getpid()}.tmp")
        shutil.copyfile(new, temporary)
        os.replace(temporary, file)
        by_age = sorted(file.parent.glob("*.mindir"), key=lambda path: path.stat().st_mtime)
        for old in by_age[:-_MAX_GRAPHS]:
            old.unlink(missing_ok=True)


def _stat(path: Path) -> tuple[int, int] | None:
    with contextlib.suppress(OSError):
        status = path.stat()
        return status.st_mtime_ns, status.st_size
    return None


_process_dirs: list[tempfile.TemporaryDirectory] = []


@functools.cache
def _process_dir() -> Path:
    """Return this process's folder for MindSpore's cache, removed when the process ends."""
    directory = tempfile.TemporaryDirectory(prefix="graphs-")
    _process_dirs.append(directory)
    return Path(directory.name)


def cleanup() -> None:
    """Remove this process's folder; for a process that ends through `os._exit`."""
    for directory in _process_dirs:
        directory.cleanup()


def _versions() -> tuple[str, ...]:
    return ms.__version__, np.__version__, platform.python_version(), platform.machine()


@functools.cache
def _hash_sources(modules: frozenset[str]) -> str | None:
    """Return a hash of the toolkit's source and of `modules`, those of a graph's Cells; None if a source is missing."""
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


def _describe_cells(cell: nn.Cell) -> list[Any]:
    """Return type and attributes of every Cell in `cell`: numbers, strings, constants, operators, parameter shapes."""
    names = {id(part): name for name, part in cell.cells_and_names()}
    attributes_of_every_cell = vars(nn.Cell())
    return [
        (
            name,
            type(part).__qualname__,
            part._recompute_cell is not None,
            [_describe(parameter, names) for _, parameter in part.parameters_and_names(expand=False)],
            [(k, _describe(v, names)) for k, v in vars(part).items() if k not in attributes_of_every_cell],
        )
        for name, part in cell.cells_and_names()
    ]


def _describe(value: Any, names: dict[int, str]) -> Any:
    if isinstance(value, nn.Cell):
        return names.get(id(value), repr(value))
    if isinstance(value, Parameter):
        return value.name, value.shape, str(value.dtype), value.requires_grad
    if isinstance(value, Tensor):
        # Inputs of a graph (without `names`) count by shape and dtype, constants of a Cell by content, too.
        content = hashlib.sha256(value.asnumpy().tobytes()).hexdigest() if names else ""
        return value.shape, str(value.dtype), content
    if isinstance(value, ops.Primitive):
        return repr(value), sorted((k, repr(v)) for k, v in value.attrs.items())
    if isinstance(value, list | tuple):
        return [_describe(item, names) for item in value]
    if dataclasses.is_dataclass(value) or value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    return f"{type(value).__name__} {value!r}"
