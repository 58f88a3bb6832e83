"""gm/checkpoints/torch_format.py: PyTorch's files are read; code and damage are refused."""

from __future__ import annotations

import io
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gm.checkpoints import torch_format
from gm.checkpoints.lazy_tensor import LazyTensor

pytestmark = pytest.mark.reference


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
