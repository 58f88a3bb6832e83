"""Stand-ins for the libraries of CANN: empty functions under the names that MindSpore's Ascend plug-in looks for.

The plug-in for Ascend is part of every MindSpore wheel, but `ms.set_device("Ascend")` stops where the libraries of CANN
are missing ("libge_runner.so: cannot open shared object file"). The names that it needs from them are its undefined
symbols, less those that MindSpore itself and the system define: everything here comes from the installed wheel.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

from gm.errors import UserError

LIBRARIES = (
    *("ge_runner", "graph", "error_manager", "platform", "ascendcl", "msprofiler", "cann_kb", "compress"),
    *("opskernel", "host_cpu_engine", "slice", "aoe_executor", "acl_dvpp_op", "acl_dvpp_mpi", "hccl", "runtime"),
    *("c_sec", "nnopbase", "ascend_hal"),
)
# They return a vector through a hidden pointer, in the register rdi; the caller destroys it: it must be an empty one.
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
CARDS = ("ascend910b", "ascend910_93", "ascend910")  # as `MSContext.get_ascend_soc_version` names them
_FUNCTION = "xorl %eax, %eax\nret"  # return 0
_EMPTY_VECTOR = "movq $0, (%rdi)\nmovq $0, 8(%rdi)\nmovq $0, 16(%rdi)\nmovq %rdi, %rax\nret"
# A simulated card has no name. This replaces `std::string MsContext::ascend_soc_version() const`, on which branches of
# MindSpore depend, too. The string is libstdc++'s old one: length, capacity and a count of references, so high that
# nobody frees it, before the text.
_CARD = """.data
.balign 16
.quad {length}
.quad {length}
.quad 0x40000000
name: .asciz "{name}"
.text
.globl _ZNK9mindspore9MsContext18ascend_soc_versionEv
.type _ZNK9mindspore9MsContext18ascend_soc_versionEv, @function
_ZNK9mindspore9MsContext18ascend_soc_versionEv:
leaq name(%rip), %rax
movq %rax, (%rdi)
movq %rdi, %rax
ret
"""
_NO_EXECUTABLE_STACK = '.section .note.GNU-stack,"",@progbits\n'


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
        libraries = Path(temporary) / "lib"
        libraries.mkdir()
        _link(libraries, missing_symbols(mindspore_lib()))
        try:
            libraries.rename(folder)
        except OSError:  # another process was faster
            if not folder.exists():
                raise
    return folder


def environment(folder: Path, card: str = CARDS[0]) -> dict[str, str]:
    """Return the environment of a process that compiles for `card` with the stand-ins in `folder`."""
    variables = {
        "LD_LIBRARY_PATH": _join(str(folder), os.environ.get("LD_LIBRARY_PATH")),
        "LD_PRELOAD": _join(str(folder / _card_library(card)), os.environ.get("LD_PRELOAD")),
        "MS_SIMULATION_LEVEL": "0",
        "GM_GRAPHS": "",  # a cached graph would not be compiled
        "GLOG_v": "3",  # MindSpore's errors only
    }
    return {**os.environ, **variables}


def is_ready(card: str) -> bool:
    """Return whether this process has the `environment` of `card`."""
    return _card_library(card) in os.environ.get("LD_PRELOAD", "")


def _card_library(card: str) -> str:
    return f"libcard_{card}.so"


def _join(*paths: str | None) -> str:
    return os.pathsep.join(filter(None, paths))


def mindspore_lib() -> Path:
    """Return the folder of MindSpore's libraries, without importing it."""
    spec = importlib.util.find_spec("mindspore")
    if spec is None or spec.origin is None:
        raise UserError("MindSpore is not installed: make install")
    return Path(spec.origin).parent / "lib"


def missing_symbols(lib: Path) -> list[str]:
    """Return the names that MindSpore's Ascend plug-in under `lib` needs from CANN."""
    users = plugin_files(lib)
    mindspore = [*lib.glob("*.so*"), *lib.parent.glob("_c_expr*.so"), *users]
    needed = _symbols(users, "--undefined-only")
    defined = _symbols([*mindspore, *_system_libraries()], "--defined-only")
    return sorted(name for name in needed - defined if not name.startswith(_NOT_OF_CANN))


def plugin_files(lib: Path) -> list[Path]:
    """Return the plug-in for Ascend and its libraries; UserError if the wheel has none."""
    files = [lib / name for name in _PLUGIN]
    for file in files:
        if not file.exists():
            raise UserError(
                f"{file} is missing: this MindSpore has no Ascend plug-in; the Linux wheels of PyPI have it"
            )
    ascend = lib / "plugin" / "ascend"
    return [*files, *sorted(ascend.glob("*.so*")), *sorted((ascend / "ms_kernels_symmetric_memory").rglob("*.so*"))]


def _symbols(files: Iterable[Path], kind: str) -> set[str]:
    """Return the dynamic symbols of `files`, without versions."""
    command = ["nm", "-D", "--format=posix", kind, *map(str, files)]
    lines = subprocess.run(command, check=False, capture_output=True, text=True).stdout.splitlines()
    return {line.split()[0].split("@")[0] for line in lines if len(line.split()) > 1}


def _system_libraries() -> list[Path]:
    """Return the files of libc and its kin; UserError for one that is missing: it would get stand-ins, too."""
    paths = []
    for name in _SYSTEM:
        command = ["gcc", f"-print-file-name={name}"]
        path = Path(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())
        if not path.is_absolute():
            raise UserError(f"gcc does not find {name}, which MindSpore needs: apt-get install gcc libgomp1 libstdc++6")
        paths.append(path)
    return paths


def _link(folder: Path, names: list[str]) -> None:
    """Write one library with a stand-in for each of `names`, the libraries of CANN, which only link it, and cards."""
    _assemble("".join(map(_assembly, names)), folder / "libcann_stand_in.so")
    for name in LIBRARIES:
        file = f"lib{name}.so"
        flags = (f"-Wl,-soname,{file}", "-Wl,--no-as-needed", "-Wl,-rpath,$ORIGIN", f"-L{folder}", "-lcann_stand_in")
        _gcc("-o", folder / file, *flags)
    for card in CARDS:
        _assemble(_CARD.format(name=card, length=len(card)), folder / _card_library(card))


def _assemble(text: str, target: Path) -> None:
    source = target.with_suffix(".s")
    source.write_text(text + _NO_EXECUTABLE_STACK)
    _gcc(source, "-o", target)
    source.unlink()


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
        raise UserError(f"the dry run supports x86-64 alone; this machine is {os.uname().machine}")
    for tool in ("gcc", "nm"):
        if shutil.which(tool) is None:
            raise UserError(f"the dry run needs {tool}: apt-get install gcc binutils")


@functools.cache
def _key() -> str:
    """Return a name for the stand-ins: MindSpore's version, and a hash of their sources."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for file in plugin_files(mindspore_lib()):
        digest.update(f"{file.name} {file.stat().st_size}".encode())
    return f"mindspore-{version('mindspore')}-{digest.hexdigest()[:12]}"
