"""Damaged and malicious safetensors files: each is refused in one line, or reads as the library reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save

from gm.checkpoints import containers
from gm.errors import UserError
from tests.checkpoints.files import little_memory, mutations, replace_file


def entry(kind: str = "F32", shape: tuple[int, ...] = (2,), place: tuple[int, int] = (0, 8)) -> dict[str, Any]:
    return {"dtype": kind, "shape": list(shape), "data_offsets": list(place)}


def file_of(folder: Path, header: Any, content: bytes = bytes(8), length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = folder / "a.safetensors"
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + content)
    return path


def refusal(path: Path) -> str:
    """Return the one-line message that a file is refused with."""
    with little_memory(), pytest.raises(UserError) as caught:
        containers.read(path)
    text = str(caught.value)
    assert text.startswith(str(path))
    assert text.isprintable()
    assert len(text) < len(str(path)) + 400
    return text


DUPLICATE_KEY = (
    b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]}}'
)
DUPLICATE_METADATA = b'{"__metadata__":{"n":"1","n":"2"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"a": entry(place=(8, 16))}, "invalid offset"),
        ({"a": entry(), "b": entry()}, "invalid offset"),  # both at one offset
        ({"a": entry(), "b": entry(place=(4, 12))}, "invalid offset"),
        ({"a": entry(shape=(1,), place=(0, 4)), "b": entry(shape=(1,), place=(6, 10))}, "invalid offset"),  # a gap
        ({"a": entry(place=(8, 0))}, "invalid"),
        ({"a": entry(place=(-8, 0))}, "integer `-8`"),
        ({"a": entry(place=(0, 2**64))}, "expected usize"),
        ({"a": entry(place=(0, 2**63))}, "invalid"),
        ({"a": entry(shape=(-2,))}, "integer `-2`"),
        ({"a": entry(shape=(3,))}, "invalid shape"),
        ({"a": entry("F64")}, "invalid shape"),
        ({"a": entry(shape=(2**32, 2**32))}, "overflow"),  # 0 modulo 2^64
        ({"a": entry(shape=(2**63, 2**63, 0), place=(0, 0))}, "overflow"),
        ({"a": entry(), "b": entry(shape=(0, 2**63), place=(8, 8))}, "no tensor can have the shape of 'b'"),
        ({"a": entry(shape=(2,) + (1,) * 40)}, "no tensor can have the shape of 'a'"),
        ({"a": entry("float32")}, "unknown variant"),
        ({"a": entry("X\nY")}, "unknown variant"),
        ({"a": entry("X\x1b[2J\u202e")}, r"unknown variant `X\x1b[2J\u202e`"),  # control characters of a terminal
        ({"a": entry("F4", (16,))}, "'a' has type F4, which is not supported"),
        ({"a\nb" * 3000: entry("F4", (16,))}, "has type F4"),
        ({"a": {**entry(), "shape": "2"}}, "invalid type"),
        ({"a": {**entry(), "shape": [2.0]}}, "floating point"),
        ({"a": {**entry(), "data_offsets": [0, 8, 8]}}, "trailing characters|invalid length"),
        ({"a": {"dtype": "F32"}}, "missing field"),
        ({"a": [1, 2]}, "invalid"),
        ({"a": ["F32", [2], [0, 8]]}, "'a' is not described as the format requires"),  # as the library reads, too
        ({"a": {**entry(), "dtype": {"F32": None}}}, "'a' is not described as the format requires"),
        ({"a": None}, "invalid type"),
        ({"__metadata__": {"n": 1}, "a": entry()}, "expected a string"),
        ({"__metadata__": {"n": {"m": "1"}}, "a": entry()}, "expected a string"),
        ({"__metadata__": ["n"], "a": entry()}, "invalid type"),
        (DUPLICATE_KEY, "a key occurs twice"),
        (DUPLICATE_METADATA, "a key occurs twice"),
        (b'{"a":' * 50_000, "recursion limit"),
        (b'{"\xff": 1}', "invalid utf-8"),
        (b'{"a\\ud800": 1}', "hex escape"),
        (b"{" + b" " * 5000, "EOF"),
        (b"{} x", "trailing characters"),
        (b"{}", "not fully covered"),
        (b"[]", "not a complete MindSpore checkpoint"),  # only a JSON object makes a safetensors file
    ],
)
def test_contradictory_headers_are_refused(tmp_path: Path, header: Any, reason: str) -> None:
    text = refusal(file_of(tmp_path, header))
    assert any(part in text for part in reason.split("|")), text


@pytest.mark.parametrize("length", [0, 1, 9, 10**6, 99_999_999, 2**31, 2**32 - 1, 2**32, 2**63, 2**64 - 1])
def test_wrong_header_lengths_are_refused(tmp_path: Path, length: int) -> None:
    refusal(file_of(tmp_path, {"a": entry()}, length=length))


def test_a_header_larger_than_any_model_needs_is_not_read(tmp_path: Path) -> None:
    path = file_of(tmp_path, b'{"a": 1}', length=90_000_000)
    with path.open("r+b") as file:
        file.truncate(100_000_000)  # takes up no disk
    assert "its header has 90000000 bytes, more than any model needs" in refusal(path)


def test_unusual_but_valid_files_are_read(tmp_path: Path) -> None:
    """Any key is a key; tensors may start at any byte, in any order."""
    header = {
        "../../etc/passwd": entry("BOOL", (3,), (0, 3)),
        "/dev/null\0": entry("F32", (1,), (3, 7)),
        "": entry("F64", (), (7, 15)),
        "none": entry("I64", (0, 5), (7, 7)),
        "__metadata__": {"../a": "ü", "": ""},
    }
    numbers = np.array([1.5], np.float32).tobytes() + np.array(-2.5).tobytes()
    contents = containers.read(file_of(tmp_path, header, b"\1\0\1" + numbers))
    found = {name: tensor.read().tolist() for name, tensor in contents.tensors.items()}
    assert found == {"../../etc/passwd": [True, False, True], "/dev/null\0": [1.5], "": -2.5, "none": []}
    assert contents.metadata == {"../a": "ü", "": ""}
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


SMALL = save(
    {
        "clip_l": np.arange(6, dtype=np.float32).reshape(2, 3),
        "clip_g": np.ones((2, 5), np.float16),
        "n": np.array(7, np.int64),
        "flags": np.array([True, False, True]),
    },
    {"placeholder_token": "<cat>", "details": '{"step": 7}'},
)


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    large = save({"a": np.zeros((300, 50), np.float32), "b": np.zeros(7)})
    for whole, every in ((SMALL, 1), (large, 1024)):
        for end in range(1, len(whole), every):
            replace_file(path, whole[:end])
            with pytest.raises(UserError):
                containers.read(path)


def test_ten_thousand_mutations_are_refused_or_read_as_the_library_reads_them(tmp_path: Path) -> None:
    path, refusals = tmp_path / "a.safetensors", []
    for changed in mutations(SMALL, 10_000):
        replace_file(path, changed)
        try:
            contents = containers.read(path)
            found = {name: tensor.read() for name, tensor in contents.tensors.items()}
        except UserError as error:
            refusals.append(str(error))
            continue
        with safe_open(path, framework="np") as theirs:
            assert (theirs.metadata() or {}) == contents.metadata
            assert set(theirs.keys()) == set(found)
            for name, values in found.items():
                assert values.tobytes() == theirs.get_tensor(name).tobytes()
                assert values.shape == tuple(theirs.get_slice(name).get_shape())
    assert 5000 < len(refusals) < 10_000
    assert all(len(text.splitlines()) == 1 for text in refusals)
