"""gm/checkpoints/torch_format.py: PyTorch's files are read; code and damage are refused."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gm.checkpoints import torch_format
from gm.checkpoints.lazy_tensor import LazyTensor
from gm.errors import UserError
from tests.checkpoints.files import little_memory, mutations, replace_file

pytestmark = pytest.mark.reference


def values(tree: Any) -> Any:
    if isinstance(tree, LazyTensor):
        return tree.read()
    return {key: values(value) for key, value in tree.items()} if isinstance(tree, dict) else tree


def various_tensors() -> dict[str, Any]:
    matrix = torch.randn(6, 8)
    return {
        "whole": matrix,
        "part": matrix[2:4, ::2],  # of the same storage
        "transposed": matrix.T,
        "half": torch.randn(3, 5).half(),
        "bfloat16": torch.randn(2, 7).bfloat16(),
        "double": torch.randn(1).double(),
        "number": torch.tensor(3.5),
        "none": torch.zeros(0, 4),
        "parameter": torch.nn.Parameter(torch.randn(2, 2)),
        "ids": {"*": torch.tensor([265])},
        "dict": torch.nn.ParameterDict({"<a>": torch.nn.Parameter(torch.randn(1, 3))}),
        "ordered": OrderedDict(name="cat", step=499, rate=0.25, flag=True, nothing=None),
    }


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])  # of NumPy 1 and 2
def test_scalars_of_numpy_and_what_else_says_nothing_are_read(tmp_path: Path, module: str, protocol: int) -> None:
    numbers = {
        "int64": np.int64(-7),
        "uint8": np.uint8(200),
        "float16": np.float16(0.5),
        "float64": np.float64(1e300),
        "big endian": np.array([499], ">i4")[0],
        "bool": np.bool_(True),
        "str": np.str_("wört"),
    }
    stream = io.BytesIO()
    torch.save({**numbers, "list": [1, (2.5, "a")], "dtype": torch.float16}, stream, pickle_protocol=protocol)
    named = {b"\x8c\x15numpy.core.multiarray": b"\x8c" + bytes([len(module)]) + module.encode()}  # in protocol 4
    named[b"numpy.core.multiarray"] = module.encode()
    content = rewrite_pickle(stream, named)
    (tmp_path / "a.pt").write_bytes(content)
    loaded = torch_format.read(tmp_path / "a.pt")
    expected = {key: value.item() for key, value in numbers.items()}
    assert loaded == {**expected, "list": [1, [2.5, "a"]], "dtype": None}
    assert {key: type(loaded[key]) for key in expected} == {key: type(value) for key, value in expected.items()}


def rewrite_pickle(stream: io.BytesIO, changes: dict[bytes, bytes]) -> bytes:
    """Return the zip archive in `stream` with the first of `changes` that its pickle contains made in it."""
    target = io.BytesIO()
    with zipfile.ZipFile(stream) as source, zipfile.ZipFile(target, "w") as archive:
        for name in source.namelist():
            data = source.read(name)
            old = next((each for each in changes if name.endswith("data.pkl") and each in data), b"")
            archive.writestr(name, data.replace(old, changes[old]) if old else data)
    return target.getvalue()


def test_a_tensor_with_attributes_is_read(tmp_path: Path) -> None:
    tensor = torch.ones(2, 3)
    tensor.note = "mine"
    torch.save({"a": tensor}, tmp_path / "a.pt")
    assert np.array_equal(torch_format.read(tmp_path / "a.pt")["a"].read(), np.ones((2, 3)))


def test_a_safetensors_file_whose_length_looks_like_a_pickle_is_none(tmp_path: Path) -> None:
    from gm.checkpoints import containers
    from gm.checkpoints.lazy_tensor import in_memory

    header = {"a": in_memory(np.ones((2, 3), np.float32))}
    path = tmp_path / "a.safetensors"
    for length in (640, 896, 19280):  # 80 02, 80 03, and the PK of zip archives
        padding = length
        while True:
            containers.write(path, header, {"x": "y" * padding})
            found = int.from_bytes(path.read_bytes()[:8], "little")
            if found <= length:
                break
            padding -= found - length
        assert found == length
        assert not torch_format.is_torch_file(path)
        assert np.array_equal(containers.read(path).tensors["a"].read(), np.ones((2, 3)))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("archive", [True, False], ids=["zip", "legacy"])
def test_files_of_pytorch_are_read(tmp_path: Path, archive: bool, protocol: int) -> None:
    saved = various_tensors()
    path = tmp_path / "a.pt"
    torch.save(saved, path, pickle_protocol=protocol, _use_new_zipfile_serialization=archive)
    assert torch_format.is_torch_file(path)
    loaded = torch_format.read(path)
    assert loaded["ordered"] == saved["ordered"]
    assert {k: type(v) for k, v in loaded.items()} == dict.fromkeys(saved, LazyTensor) | {
        "ids": dict,
        "dict": dict,
        "ordered": dict,
    }
    assert loaded["half"].dtype == "float16"
    assert np.array_equal(loaded["dict"]["_parameters"]["<a>"].read(), saved["dict"]["<a>"].detach().numpy())
    assert loaded["ids"]["*"].read().tolist() == [265]
    for name, tensor in saved.items():
        if isinstance(tensor, torch.Tensor):
            ours, theirs = loaded[name], tensor.detach()
            assert ours.shape == tuple(theirs.shape)
            assert np.array_equal(ours.read(), theirs.float().numpy() if name == "bfloat16" else theirs.numpy())


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


def test_pytorch_reads_what_is_written_with_weights_only(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    tree = {
        "matrix": rng.standard_normal((3, 5)).astype(np.float32),
        "transposed": rng.standard_normal((4, 6)).astype(np.float16).T,
        "ids": {"*": np.array([265])},
        "name": "Würfel",
        "step": -70_000,
        "rate": 0.5,
        "flag": True,
        "nothing": None,
        "empty": {},
    }
    torch_format.write(tmp_path / "a.pt", tree)
    loaded = torch.load(tmp_path / "a.pt", weights_only=True)
    assert np.array_equal(loaded["matrix"].numpy(), tree["matrix"])
    assert np.array_equal(loaded["transposed"].numpy(), tree["transposed"])
    assert loaded["ids"]["*"].tolist() == [265]
    plain = ("name", "step", "rate", "flag", "nothing", "empty")
    assert {name: loaded[name] for name in plain} == {name: tree[name] for name in plain}
    ours = torch_format.read(tmp_path / "a.pt")
    assert np.array_equal(ours["transposed"].read(), tree["transposed"])
    before = (tmp_path / "a.pt").read_bytes()
    torch_format.write(tmp_path / "a.pt", tree)
    assert (tmp_path / "a.pt").read_bytes() == before
