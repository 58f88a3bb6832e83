"""The library of operators for the CPU over oneDNN: compiled once for this processor, kept beside the cached graphs.

`gm/ops/*.cpp` need a C++ compiler with OpenMP and oneDNN 3 (https://github.com/uxlfoundation/oneDNN), `bfloat16.cpp` a
processor with AVX512-BF16 or AMX besides. oneDNN is that of the wheels `onednn-cpu-gomp` and `onednn-devel-cpu-gomp`,
or of the folder that the environment variable `DNNLROOT` names, as in oneAPI. `CXX` chooses the compiler.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import site
import subprocess
import sys
import tempfile
from pathlib import Path

from gm.runtime import compile_cache

log = logging.getLogger("gm")

_OPS = Path(__file__).parents[1] / "ops"
_NAMES = ("bfloat16", "flash_attention", "float32_convolution", "float32_product", "fused")
SOURCES = tuple(_OPS / f"{name}.cpp" for name in _NAMES)
HEADER = _OPS / "operators.h"
INSTALL = 'pip install "mindspore-textual-inversion[onednn]"'
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fPIC", "-shared", "-fopenmp")
_LIBRARY = "libdnnl.so.3"
_INSTRUCTIONS = ("avx512_bf16", "amx_bf16")
_SECONDS = 300  # the compiler needs ten, on a busy machine more
# Path of the library; empty until `load` finds or compiles it. A module variable, as code that MindSpore compiles
# cannot look for files.
_path = ""
_has_bfloat16 = False


class Unavailable(Exception):
    """The reason why there are no such operators, with the remedy."""


def library() -> str:
    """Return the path of the library that `load` loaded; empty if there is none."""
    return _path


def has_bfloat16() -> bool:
    """Return whether `load_bfloat16` found operators in bfloat16."""
    return _has_bfloat16


def load() -> None:
    """Find or compile the library, again if its file was deleted. Raises Unavailable where that is not possible."""
    global _path
    if not (_path and Path(_path).exists()):
        root, compiler = find_onednn(), find_compiler()
        path = _folder() / f"operators_{_key(root, compiler)}.so"
        if not path.exists():
            log.info("compiling operators for this processor into %s", path)
            compile_library(path, root, compiler)
        _open_library(path)
        _path = str(path)


def load_bfloat16() -> None:
    """Load the library for operators in bfloat16; raises Unavailable as `load` does, and without such instructions."""
    global _has_bfloat16
    check_processor()
    load()
    if not _open_library(Path(_path)).has_bfloat16():
        limit = os.environ.get("ONEDNN_MAX_CPU_ISA")
        raise Unavailable(f"oneDNN does not use bfloat16 here (ONEDNN_MAX_CPU_ISA={limit}); unset it")
    _has_bfloat16 = True


def check_processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> None:
    """Raise Unavailable if this processor has no instructions for products in bfloat16."""
    if not any(name in _processor(cpuinfo) for name in _INSTRUCTIONS):
        raise Unavailable("this processor has neither AVX512-BF16 nor AMX")


def find_onednn() -> Path:
    """Return the folder of oneDNN with `lib` and `include`; raises Unavailable."""
    chosen = os.environ.get("DNNLROOT")
    roots = [Path(chosen)] if chosen else [Path(sys.prefix), Path(site.getuserbase())]
    for root in roots:
        if (root / "lib" / _LIBRARY).is_file() and (root / "include" / "dnnl.hpp").is_file():
            return root
    where = f"in DNNLROOT={chosen}" if chosen else f"in {roots[0]}"
    raise Unavailable(f"no oneDNN 3 {where} (lib/{_LIBRARY}, include/dnnl.hpp); {INSTALL}")


def find_compiler() -> str:
    """Return the path of the C++ compiler; raises Unavailable."""
    chosen = os.environ.get("CXX")
    for name in [chosen] if chosen else ["g++", "clang++", "c++"]:
        if path := shutil.which(name):
            return path
    raise Unavailable(
        f"no C++ compiler ({f'CXX={chosen}' if chosen else 'g++'}); install one, for example Debian's g++"
    )


def compile_library(path: Path, root: Path, compiler: str) -> None:
    """Compile the operators into `path`, atomically; raises Unavailable with the compiler's message."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            stand_in, built = Path(folder) / "onednn.so", Path(folder) / "operators.so"
            # An empty library whose name is oneDNN's path. Linked by that path, oneDNN is a copy of its own; linked by
            # its name, it would be that of MindSpore 2.9, which has the same one and is limited to AVX2.
            name = f"-Wl,-soname,{root / 'lib' / _LIBRARY}"
            _run([compiler, "-shared", "-x", "c++", os.devnull, "-o", str(stand_in), name])
            sources = [f"-I{root / 'include'}", *map(str, SOURCES)]
            _run([compiler, *_FLAGS, *sources, "-o", str(built), "-Wl,--no-as-needed", str(stand_in)])
            os.replace(built, path)
    except OSError as error:
        raise Unavailable(f"{path} cannot be written ({error.strerror}); set GM_GRAPHS to a folder") from error


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{command[0]} has not compiled the operators in {_SECONDS} s") from None
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()[-1:]
        raise Unavailable(f"{command[0]} does not compile the operators: {errors[0] if errors else done.returncode}")


def _open_library(path: Path) -> ctypes.CDLL:
    """Return the library; raises Unavailable, and removes it, if it does not load."""
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        path.unlink(missing_ok=True)
        raise Unavailable(f"the operators do not load ({error})") from error


def _folder() -> Path:
    """Return the folder of the cached graphs; without a cache, a folder that is removed with this process."""
    return compile_cache.cache_dir() or Path(_process_folder().name)


@functools.cache
def _process_folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="operators-")


def _key(root: Path, compiler: str) -> str:
    """Return a hash of the library's dependencies: source, compiler, oneDNN, processor."""
    parts: list[object] = [
        *(source.read_text(encoding="utf-8") for source in (HEADER, *SOURCES)),
        _FLAGS,
        platform.machine(),
        _processor(),
    ]
    for file in (Path(compiler), root / "lib" / _LIBRARY):
        status = file.resolve().stat()
        parts += [str(file), status.st_size, status.st_mtime_ns]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the name of this processor and its instruction sets; empty where Linux does not list them."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    prefixes = ("model name", "flags")
    return "\n".join(dict.fromkeys(line for line in lines if line.startswith(prefixes)))
