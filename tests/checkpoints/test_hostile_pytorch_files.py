"""PyTorch files that run code, fill the memory, or are damaged: none is executed, all are refused."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gm.checkpoints import torch_format
from gm.checkpoints.lazy_tensor import LazyTensor
from gm.errors import UserError
from tests.checkpoints.files import little_memory, mutations, replace_file


def values(tree: Any) -> Any:
    if isinstance(tree, LazyTensor):
        return tree.read()
    return {key: values(value) for key, value in tree.items()} if isinstance(tree, dict) else tree


class Trap:
    """Calls a function when it is unpickled by Python."""

    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call, self.arguments


def zipped(path: Path, content: bytes, compression: int = zipfile.ZIP_STORED, **others: bytes) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", content)
        for name, data in others.items():
            file.writestr(name, data)
    return path


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
@pytest.mark.parametrize("deep", [False, True], ids=["outside", "inside"])
@pytest.mark.parametrize(
    ("call", "name"),
    [(os.mkdir, "posix.mkdir"), (eval, "eval"), (exec, "exec"), (getattr, "getattr"), (os.system, "posix.system")],
)
def test_no_code_in_a_file_is_executed(tmp_path: Path, call: Callable, name: str, deep: bool, protocol: int) -> None:
    target = tmp_path / "made"
    arguments = {
        "posix.mkdir": (str(target),),
        "posix.system": (f"mkdir {target}",),
        "getattr": (os, "mkdir"),
    }.get(name, (f"__import__('os').mkdir({str(target)!r})",))
    trap: Any = Trap(call, *arguments) if name != "getattr" else Trap(getattr, "a", "upper")
    content = pickle.dumps({"string_to_param": {"*": [trap]}} if deep else trap, protocol)
    with pytest.raises(UserError, match=rf"asks for \w+\.{name.split('.')[-1]}, which is not a tensor and could run a"):
        torch_format.read(zipped(tmp_path / "a.pt", content))
    assert not target.exists()
    if name in ("posix.mkdir", "eval"):  # proves that the trap works
        pickle.loads(content)
        assert target.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"(S'ls'\nios\nsystem\n.",  # INST, of the oldest protocol
        b"\x80\x02\x82\x01.",  # EXT1, a name by its number
        b"\x80\x02Pname\n.",  # a persistent name as text
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x02ls\x85R.",
        b"\x80\x02ctorch\nload\nX\x01\x00\x00\x00a\x85R.",
        b"\x80\x02ctorch.storage\n_load_from_bytes\nB\x01\x00\x00\x00a\x85R.",
        b"\x80\x02cbuiltins\ngetattr\n.",
        b"\x80\x02cos\nsystem\n0N.",  # dropped again
        b"\x80\x02c__builtin__\neval\nq\x00h\x00X\x01\x00\x00\x001\x85R.",
    ],
)
def test_every_other_way_to_name_a_global_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(UserError, match=r"it is not read; get the embedding as .safetensors"):
        torch_format.read(zipped(tmp_path / "a.pt", content))


def pickle_bomb(kind: str) -> bytes:
    """Return a short pickle of a value that would fill the memory."""
    match kind:
        case "tuples in tuples as a key":
            many = b"N" + b"".join(b"q\x00h\x00h\x00\x86" for _ in range(64))
            return b"\x80\x02}" + many + b"Ns."
        case "a dict in itself":
            return b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00sX\x01\x00\x00\x00bh\x00s."
        case "dicts in dicts":
            inner = b"}X\x01\x00\x00\x00aNs"
            for k in range(1, 60):
                put, got = b"q" + bytes([k]), b"h" + bytes([k])
                inner += put + b"0}" + b"".join(b"X\x01\x00\x00\x00" + bytes([97 + n]) + got + b"s" for n in range(9))
            return b"\x80\x02" + inner + b"."
        case "a set of sets":
            first = b"(" + b"N" * 9000 + b"t\x85q\x01"
            return b"\x80\x02" + first + b"cbuiltins\nset\nq\x02" + b"h\x02h\x01R" * 3000 + b"."
        case "instructions":
            return b"\x80\x02" + b"N" * 10**6 + b"."
        case "a long number":
            return b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"1."
        case "a long text":
            return b"\x80\x04\x8d" + struct.pack("<Q", 2**60) + b"a."
        case "a place far away":
            return b"\x80\x02Nr" + struct.pack("<I", 2**32 - 1) + b"."
        case "a size of many numbers":
            storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQ"
            size = b"(" + b"K\x01" * 9000 + b"tq\x01"
            call = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00h\x01h\x01t"
            return b"\x80\x02" + size + call + b"R."
        case "a tensor beyond its storage":
            storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
            call = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00J\xff\xff\xff\x7f\x85K\x01\x85t"
            return b"\x80\x02" + call + b"R."
    raise ValueError(kind)


@pytest.mark.parametrize(
    "kind",
    [
        "tuples in tuples as a key",
        "a dict in itself",
        "dicts in dicts",
        "a set of sets",
        "instructions",
        "a long number",
        "a long text",
        "a place far away",
        "a size of many numbers",
        "a tensor beyond its storage",
    ],
)
def test_a_short_file_does_not_fill_the_memory(tmp_path: Path, kind: str) -> None:
    path = zipped(tmp_path / "a.pt", pickle_bomb(kind), **{"archive/data/0": b"\0" * 16})
    with little_memory():
        if kind in ("a set of sets", "a place far away"):
            torch_format.read(path)
        else:
            with pytest.raises(UserError, match="is cut off or damaged"):
                torch_format.read(path)


def test_other_zip_archives_are_refused(tmp_path: Path) -> None:
    content = pickle.dumps({}, 2)
    with pytest.raises(UserError, match=r"archive/data.pkl is compressed"):
        torch_format.read(zipped(tmp_path / "bomb.pt", content + bytes(10**7), zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(tmp_path / "none.pt", "w") as file:
        file.writestr("../../data.pkl", content)
        file.writestr("/etc/data.pkl", content)
    with pytest.raises(UserError, match=r"there is no data\.pkl in it, or several"):
        torch_format.read(tmp_path / "none.pt")
    with pytest.raises(UserError, match=r"there is no data\.pkl in it, or several"):
        torch_format.read(zipped(tmp_path / "two.pt", content, **{"other/data.pkl": content}))
    with pytest.raises(UserError, match="of another byte order"):
        torch_format.read(zipped(tmp_path / "big.pt", content, **{"archive/byteorder": b"big"}))
    assert torch_format.read(zipped(tmp_path / "more.pt", content, **{"../evil": b"evil"})) == {}
    assert sorted(path.name for path in tmp_path.parent.rglob("evil")) == []


def test_a_missing_or_short_storage_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"a": torch.randn(4, 4)}, path)
    with zipfile.ZipFile(path) as file:
        parts = {name.split("/", 1)[1]: file.read(name) for name in file.namelist()}
    for data in (b"", parts["data/0"][:-1]):
        loaded = torch_format.read(zipped(path, parts["data.pkl"], **{"archive/data/0": data}))
        with pytest.raises(UserError, match="is cut off or damaged"):
            loaded["a"].read()
    loaded = torch_format.read(zipped(path, parts["data.pkl"]))
    with pytest.raises(UserError, match="is cut off or damaged"):
        loaded["a"].read()


def test_a_file_too_large_for_an_embedding_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "a.pt").open("wb") as file:
        file.truncate(300 * 2**20)  # takes up no disk
    with pytest.raises(UserError, match="has 300 MB, too much for an embedding"):
        torch_format.read(tmp_path / "a.pt")


@pytest.fixture(params=[True, False], ids=["zip", "legacy"])
def whole(request: pytest.FixtureRequest) -> bytes:
    vectors = torch.randn(40, 32)
    saved = {"string_to_token": {"*": torch.tensor([265])}, "string_to_param": {"*": vectors}, "name": "cat", "step": 9}
    stream = io.BytesIO()
    torch.save(saved, stream, _use_new_zipfile_serialization=request.param)
    return stream.getvalue()


def test_a_file_cut_anywhere_is_refused(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "a.pt"
    for end in range(2, len(whole), 37):
        replace_file(path, whole[:end])
        with pytest.raises(UserError, match="is cut off or damaged"):
            values(torch_format.read(path))


def test_ten_thousand_mutations_are_read_or_refused(tmp_path: Path, whole: bytes) -> None:
    """Each gives values or a message of one line."""
    path = tmp_path / "a.pt"
    refused = 0
    for changed in mutations(whole, 5000):  # of each kind
        replace_file(path, changed)
        try:
            values(torch_format.read(path))
        except UserError as error:
            refused += len(str(error).splitlines()) == 1
    assert 1000 < refused < 5000
