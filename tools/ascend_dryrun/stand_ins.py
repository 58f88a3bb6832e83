"""Stand-ins for the libraries of CANN: empty functions under the names that MindSpore's Ascend plug-in looks for.

The plug-in for Ascend is part of every MindSpore wheel, but `ms.set_device("Ascend")` stops where the libraries of CANN
are missing ("libge_runner.so: cannot open shared object file"). The names that it needs from them are its undefined
symbols, less those that MindSpore itself and the system define: everything here comes from the installed wheel.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

from gm.errors import UserError

LIBRARIES = (
    *("ge_runner", "graph", "error_manager", "platform", "ascendcl", "msprofiler", "cann_kb", "compress"),
    *("opskernel", "host_cpu_engine", "slice", "aoe_executor", "acl_dvpp_op", "acl_dvpp_mpi", "hccl", "runtime"),
    *("c_sec", "nnopbase", "ascend_hal"),
)
# They return a vector through a hidden pointer, in the register rdi, which the caller destroys: it must be an empty one.
_RETURN_VECTOR = frozenset(
    (
        "_ZNK2ge5Shape7GetDimsEv",  # ge::Shape::GetDims() const
        "_ZNK2ge10TensorDesc8GetShapeEv",  # ge::TensorDesc::GetShape() const
        "_ZNK2ge6Tensor13GetTensorDescEv",  # ge::Tensor::GetTensorDesc() const
    )
)
_DATA = ("_ZTV", "_ZTI", "_ZTS", "_ZTT")  # tables of virtual functions and of types
_NOT_OF_CANN = ("Py", "_Py", "_ITM", "__gmon", "_ZTH")  # of Python, or weak: absent is allowed
_PLUGIN = ("plugin/libmindspore_ascend.so.2", "plugin/libmindspore_ops_ascend.so")
_SYSTEM = (
    *("libc.so.6", "libm.so.6", "libstdc++.so.6", "libgcc_s.so.1", "libpthread.so.0", "libdl.so.2", "librt.so.1"),
    *("ld-linux-x86-64.so.2", "libgomp.so.1"),
)
_FUNCTION = "xorl %eax, %eax\nret"  # return 0
_EMPTY_VECTOR = "movq $0, (%rdi)\nmovq $0, 8(%rdi)\nmovq $0, 16(%rdi)\nmovq %rdi, %rax\nret"


def build(cache: Path) -> Path:
    """Return the folder of the stand-ins for the installed MindSpore, made in `cache` if it is not there yet.

    Raises UserError without gcc and nm, on other machines than x86-64 and for a MindSpore without the Ascend plug-in.
    """
    folder = cache / _key()
    if folder.exists():
        return folder
    _check_tools()
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
        made = Path(temporary) / "lib"
        made.mkdir()
        _link(made, missing_symbols(mindspore_lib()))
        try:
            made.rename(folder)
        except OSError:  # another process was faster
            if not folder.exists():
                raise
    return folder


def mindspore_lib() -> Path:
    """Return the folder of MindSpore's libraries, without importing it."""
    import importlib.util

    spec = importlib.util.find_spec("mindspore")
    if spec is None or spec.origin is None:
        raise UserError("MindSpore is not installed: make install")
    return Path(spec.origin).parent / "lib"


def missing_symbols(lib: Path) -> list[str]:
    """Return the names that MindSpore's Ascend plug-in under `lib` needs from CANN."""
    users = plugin_files(lib)
    own = [*lib.glob("*.so*"), *lib.parent.glob("_c_expr*.so"), *users]
    needed = _symbols(users, "--undefined-only")
    defined = _symbols([*own, *_system_libraries()], "--defined-only")
    return sorted(name for name in needed - defined if not name.startswith(_NOT_OF_CANN))


def plugin_files(lib: Path) -> list[Path]:
    """Return the plug-in for Ascend and what it loads; UserError if the wheel has none."""
    files = [lib / name for name in _PLUGIN]
    for file in files:
        if not file.exists():
            raise UserError(f"{file} is missing: this MindSpore has no Ascend plug-in; the Linux wheels of PyPI have it")
    ascend = lib / "plugin" / "ascend"
    return [*files, *sorted(ascend.glob("*.so*")), *sorted((ascend / "ms_kernels_symmetric_memory").rglob("*.so*"))]


def _symbols(files: Iterable[Path], kind: str) -> set[str]:
    """Return the dynamic symbols of `files`, without versions."""
    command = ["nm", "-D", "--format=posix", kind, *map(str, files)]
    lines = subprocess.run(command, check=False, capture_output=True, text=True).stdout.splitlines()
    return {line.split()[0].split("@")[0] for line in lines if len(line.split()) > 1}


def _system_libraries() -> list[Path]:
    paths = (
        subprocess.run(["gcc", f"-print-file-name={name}"], check=True, capture_output=True, text=True).stdout.strip()
        for name in _SYSTEM
    )
    return [Path(path) for path in paths if Path(path).is_absolute()]


def _link(folder: Path, names: list[str]) -> None:
    """Write one library with a stand-in for each of `names`, and the libraries of CANN, which only link it."""
    source = folder / "cann.s"
    source.write_text("".join(map(_assembly, names)) + '.section .note.GNU-stack,"",@progbits\n')
    _gcc(source, "-o", folder / "libcann_stand_in.so")
    source.unlink()
    for name in LIBRARIES:
        file = f"lib{name}.so"
        flags = (f"-Wl,-soname,{file}", "-Wl,--no-as-needed", "-Wl,-rpath,$ORIGIN", f"-L{folder}", "-lcann_stand_in")
        _gcc("-o", folder / file, *flags)


def _assembly(name: str) -> str:
    if name.startswith(_DATA):
        return f".data\n.globl {name}\n.type {name}, @object\n.size {name}, 256\n.balign 32\n{name}:\n.zero 256\n"
    body = _EMPTY_VECTOR if name in _RETURN_VECTOR else _FUNCTION
    return f".text\n.globl {name}\n.type {name}, @function\n{name}:\n{body}\n"


def _gcc(*arguments: str | Path) -> None:
    done = subprocess.run(["gcc", "-shared", "-nostdlib", *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"gcc cannot make the stand-ins for CANN: {done.stderr.strip().splitlines()[-1]}")


def _check_tools() -> None:
    if os.uname().machine != "x86_64":
        raise UserError(f"the dry run knows x86-64 alone; this machine is {os.uname().machine}")
    for tool in ("gcc", "nm"):
        if shutil.which(tool) is None:
            raise UserError(f"the dry run needs {tool}: apt-get install gcc binutils")


@functools.cache
def _key() -> str:
    """Return a name for the stand-ins: MindSpore's version, and a hash of what they are made from."""
    from importlib.metadata import version

    digest = hashlib.sha256(Path(__file__).read_bytes())
    for file in plugin_files(mindspore_lib()):
        digest.update(f"{file.name} {file.stat().st_size}".encode())
    return f"mindspore-{version('mindspore')}-{digest.hexdigest()[:12]}"
