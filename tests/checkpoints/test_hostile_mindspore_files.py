"""Damaged and malicious MindSpore checkpoints: each is refused in one line, or reads as protobuf reads it."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from mindspore.train import serialization

from gm.checkpoints import containers, mindspore_format
from gm.checkpoints.protobuf_wire import encode_bytes, encode_integer, encode_length, encode_varint
from gm.errors import UserError
from tests.checkpoints.files import lazy, little_memory, mutations, replace_file

F32, EIGHT = encode_bytes(2, b"Float32"), encode_bytes(3, bytes(8))
TWO = encode_integer(1, 2)


def value(tensor: bytes, tag: bytes = encode_bytes(1, b"a")) -> bytes:
    return encode_bytes(1, tag + encode_bytes(2, tensor))


GOOD = value(TWO + F32 + EIGHT)


def refusal(path: Path) -> str:
    """Return the one-line message that a file is refused with, in little memory and time."""
    began = time.monotonic()
    with little_memory(), pytest.raises(UserError) as caught:
        containers.read(path)
    assert time.monotonic() - began < 10
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    assert len(text) < len(str(path)) + 400
    return text


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x0a" + b"\xff" * 20, "unreadable at byte"),  # a varint without end
        (b"\xff" * 20, "unreadable at byte"),
        (b"\x0a" + encode_varint(2**63), "cut off"),
        (b"\x0a" + encode_varint(2**64 - 1) + GOOD, "cut off"),
        (b"\x0a\xff", "cut off inside a number"),
        (encode_integer(1, 5), "a field 1 in place of a tensor"),
        (encode_bytes(2, GOOD), "a field 2 in place of a tensor"),
        (b"\x00\x00", "unreadable"),  # there is no field 0
        (encode_varint(2**40 << 3) + b"\x01", "unreadable"),
        (b"\x0b" + GOOD + b"\x0c", "unreadable"),  # a group, which is obsolete
        (b"\x0e" + GOOD, "unreadable"),  # an unknown wire type
        (GOOD + b"\x0d\0\0\0\0" + b"\x0f", "unreadable"),
        (value(TWO + F32 + EIGHT, b""), "without a tag"),
        (value(TWO + F32 + EIGHT, encode_integer(1, 7)), "without a tag"),
        (value(TWO + F32 + EIGHT, encode_bytes(1, b"\xff\xfe")), "unreadable"),
        (value(TWO + F32 + EIGHT, encode_bytes(1, b"a") * 2), "occurs twice"),
        (encode_bytes(1, encode_bytes(1, b"a") + encode_integer(2, 4)), "without a tag or a tensor"),
        (encode_bytes(1, encode_bytes(1, b"a") + encode_length(2, 2**40) + TWO), "cut off"),
        (encode_bytes(1, encode_bytes(1, b"a") + encode_length(2, 9) + TWO), "cut off"),
        (value(TWO + F32), "without type or content"),
        (value(TWO + EIGHT), "without type or content"),
        (value(TWO + F32 + EIGHT + EIGHT), "occurs twice"),
        (value(TWO + F32 + b"\x1d" + bytes(4)), "without type or content"),  # the content as a fixed number
        (value(TWO + F32 + encode_integer(3, 7)), "without type or content"),
        (value(TWO + encode_bytes(2, b"Float32\n") + EIGHT), "has type"),
        (value(TWO + encode_bytes(2, b"Float8") + EIGHT), "has type"),
        (value(encode_integer(1, 3) + F32 + EIGHT), "has 8 bytes where its shape"),
        (value(encode_integer(1, 2**32) * 2 + F32 + encode_bytes(3, b"")), "no tensor can have the shape"),
        (value(encode_integer(1, 0) + encode_integer(1, 2**62) + F32 + encode_bytes(3, b"")), "no tensor can have"),
        (value(encode_integer(1, 2**63) + F32 + EIGHT), "negative size"),
        (value(encode_integer(1, 1) * 40 + F32 + EIGHT), "no tensor can have the shape"),
        (value(encode_integer(1, 1) * 10**6 + F32 + EIGHT), "more than 64 fields"),
        (value(encode_bytes(1, b"\1" * 10**6) + F32 + EIGHT), "more than 64 integers"),
        (value(encode_bytes(1, b"\xff" * 10**6) + F32 + EIGHT), "unreadable"),
        (value(TWO + F32 + EIGHT) * 2, "'a' has 16 bytes"),  # a second part of what is whole
        (GOOD + value(TWO + F32 + EIGHT, encode_bytes(1, b"b")) + GOOD, "'a' occurs twice"),
        (encode_bytes(1, encode_integer(9, 1) * 10**6), "occurs twice"),
        (encode_bytes(1, b"".join(encode_varint(n << 3) + b"\1" for n in range(3, 10**6))), "more than 64 fields"),
        (value(encode_integer(1, 0) + encode_bytes(2, b"str") + encode_bytes(3, b"abc")), "'a' is not a text"),
        (value(encode_integer(1, 0) + encode_bytes(2, b"str") + encode_bytes(3, b"\xff" * 8)), "'a' is not a text"),
        (value(encode_integer(1, 0) + encode_bytes(2, b"str") + encode_bytes(3, b"\0\xd8\0\0")), "'a' is not a text"),
    ],
)
def test_contradictory_messages_are_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "a.ckpt"
    path.write_bytes(content)
    assert reason in refusal(path)


def test_more_values_than_any_model_has_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mindspore_format, "_MAX_VALUES", 1000)
    (tmp_path / "a.ckpt").write_bytes(GOOD * 1001)
    assert "more than 1000 fields" in refusal(tmp_path / "a.ckpt")
    (tmp_path / "a.ckpt").write_bytes(GOOD * 1000)
    assert "'a' has 8000 bytes" in refusal(tmp_path / "a.ckpt")


def test_nested_messages_are_not_followed(tmp_path: Path) -> None:
    deep = b""
    for _ in range(20_000):
        deep = encode_bytes(1, deep)
    (tmp_path / "a.ckpt").write_bytes(deep)
    refusal(tmp_path / "a.ckpt")


def test_unusual_but_valid_files_are_read(tmp_path: Path) -> None:
    """Any key is a key; fields that a later version may add are skipped."""
    more = encode_integer(9, 3) + encode_bytes(10, b"more") + b"\x5d" + bytes(4) + b"\x59" + bytes(8)
    named = encode_bytes(1, b"../../etc/passwd\n")
    path = tmp_path / "a.ckpt"
    path.write_bytes(encode_bytes(1, more + encode_bytes(2, F32 + more + EIGHT + TWO) + named))
    contents = containers.read(path)
    assert {name: tensor.read().tolist() for name, tensor in contents.tensors.items()} == {
        "../../etc/passwd\n": [0.0, 0.0]
    }
    assert [found.name for found in tmp_path.iterdir()] == ["a.ckpt"]


@pytest.fixture
def whole(tmp_path: Path) -> bytes:
    tensors = {
        "rows": np.arange(6, dtype=np.float32).reshape(2, 3),
        "half": np.ones((2, 5), np.float16),
        "n": np.array(7, np.int64),
    }
    containers.write(tmp_path / "a.ckpt", lazy(tensors), {"placeholder_token": "<cat>", "num_vectors": 2})
    return (tmp_path / "a.ckpt").read_bytes()


def protobufs(content: bytes) -> dict[str, bytes]:
    """Return the tensors' bytes by name, as protobuf's own parser finds them."""
    message = serialization.Checkpoint()
    message.ParseFromString(content)
    found: dict[str, bytes] = {}
    for each in message.value:
        found[each.tag] = found.get(each.tag, b"") + each.tensor.tensor_content
    return found


def ours(path: Path) -> dict[str, bytes]:
    contents = containers.read(path)
    texts = {name: (text or "\0").encode("utf-32-le") for name, text in contents.metadata.items()}
    return texts | {name: tensor.read().tobytes() for name, tensor in contents.tensors.items()}


def test_a_file_cut_anywhere_is_refused_or_reads_as_protobuf_reads_it(tmp_path: Path, whole: bytes) -> None:
    path, read, refusals = tmp_path / "a.ckpt", [], []
    assert ours(path) == protobufs(whole)
    containers.write(tmp_path / "b.ckpt", lazy({name: np.zeros((90, 90), np.float32) for name in "ab"}))
    large = (tmp_path / "b.ckpt").read_bytes()
    for content, every in ((whole, 1), (large, 1024)):
        for end in range(1, len(content), every):
            replace_file(path, content[:end])
            try:
                assert ours(path) == protobufs(content[:end])
                read.append(end)
            except UserError as error:
                refusals.append(str(error))
    assert all(len(text.splitlines()) == 1 for text in refusals)
    assert len(read) == 4  # between two entries, where nothing tells


def test_ten_thousand_mutations_are_refused_or_read_as_protobuf_reads_them(tmp_path: Path, whole: bytes) -> None:
    path, refusals = tmp_path / "a.ckpt", []
    for changed in mutations(whole, 10_000):
        replace_file(path, changed)
        try:
            found = ours(path)
        except UserError as error:
            refusals.append(str(error))
            continue
        try:
            theirs = protobufs(changed)
        except DecodeError as error:
            raise AssertionError(f"protobuf refuses {changed!r}") from error
        assert {n: b.rstrip(b"\0") for n, b in found.items()} == {n: b.rstrip(b"\0") for n, b in theirs.items()}
    assert 5000 < len(refusals) < 10_000
    assert all(len(text.splitlines()) == 1 for text in refusals)
