"""gm/checkpoints/mindspore_format.py: MindSpore's checkpoints, read and written."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from mindspore.train import serialization

from gm.checkpoints import containers, mindspore_format
from gm.checkpoints.lazy_tensor import LazyTensor
from gm.checkpoints.protobuf_wire import encode_bytes
from gm.errors import UserError
from tests.checkpoints.files import assert_equal, cuts, lazy, mixed, replace_file

APPENDED = {"word": "<cät-toy>", "empty": "", "count": 10, "seed": 2**40, "rate": 0.5, "flag": True}


def save_with_mindspore(path: Path, tensors: dict[str, np.ndarray], **options: object) -> None:
    ms.save_checkpoint([{"name": name, "data": Tensor(array)} for name, array in tensors.items()], str(path), **options)
    os.chmod(path, 0o644)  # MindSpore makes it read-only


def test_a_checkpoint_of_mindspore_is_read(tmp_path: Path) -> None:
    save_with_mindspore(tmp_path / "a.ckpt", mixed(), append_dict=APPENDED, crc_check=True)
    contents = containers.read(tmp_path / "a.ckpt")
    numbers = {name: np.array(value) for name, value in APPENDED.items() if not isinstance(value, str)}
    numbers["rate"] = numbers["rate"].astype(np.float32)
    assert_equal(contents.tensors, mixed() | numbers)
    assert contents.metadata == {"word": "<cät-toy>", "empty": ""}


def test_our_checkpoint_equals_mindspores_to_the_byte(tmp_path: Path) -> None:
    save_with_mindspore(tmp_path / "theirs.ckpt", mixed(), append_dict=APPENDED)
    containers.write(tmp_path / "ours.ckpt", lazy(mixed()), APPENDED)
    assert (tmp_path / "ours.ckpt").read_bytes() == (tmp_path / "theirs.ckpt").read_bytes()


def test_mindspore_does_not_see_notes(tmp_path: Path) -> None:
    notes = {"pooling": "argmax", "wörter": "a\nb", "empty": ""}
    containers.write(tmp_path / "a.ckpt", lazy(mixed()), APPENDED, notes=notes)
    assert list(ms.load_checkpoint(str(tmp_path / "a.ckpt"))) == [*mixed(), *APPENDED]
    assert containers.read(tmp_path / "a.ckpt").metadata == {"word": "<cät-toy>", "empty": ""} | notes


@pytest.mark.parametrize("notes", [b"{", b"[1]", b'{"a": 1}', b"\xff", b"[" * 100_000])
def test_damaged_notes_are_refused(tmp_path: Path, notes: bytes) -> None:
    containers.write(tmp_path / "a.ckpt", lazy(mixed()))
    with (tmp_path / "a.ckpt").open("ab") as file:
        file.write(encode_bytes(15, notes))
    with pytest.raises(UserError, match="is not a complete MindSpore checkpoint"):
        containers.read(tmp_path / "a.ckpt")


def test_mindspore_reads_our_checkpoint(tmp_path: Path) -> None:
    transposed = np.arange(12, dtype=np.float32).reshape(3, 4).T
    tensors = mixed() | {"t": transposed}
    containers.write(tmp_path / "a.ckpt", lazy(tensors), APPENDED)
    loaded = ms.load_checkpoint(str(tmp_path / "a.ckpt"))
    assert list(loaded) == [*tensors, *APPENDED]
    for name, array in tensors.items():
        assert np.array_equal(loaded[name].asnumpy(), array)
        assert loaded[name].asnumpy().dtype == array.dtype
    for name, value in APPENDED.items():
        assert (loaded[name] if isinstance(value, str) else loaded[name].asnumpy().item()) == value


def test_bfloat16_reads_as_float32(tmp_path: Path) -> None:
    values = Tensor([1.5, -2.0, 3.140625], ms.bfloat16)
    ms.save_checkpoint([{"name": "b", "data": values}], str(tmp_path / "a.ckpt"))
    tensor = containers.read(tmp_path / "a.ckpt").tensors["b"]
    assert tensor.dtype == "bfloat16"
    assert np.array_equal(tensor.read(), np.array([1.5, -2.0, 3.140625], np.float32))


def test_a_large_tensor_is_split_into_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mindspore_format, "_SLICE_SIZE", 1024)
    monkeypatch.setattr(serialization, "SLICE_SIZE", 1)  # KB
    containers.write(tmp_path / "ours.ckpt", lazy(mixed()))
    save_with_mindspore(tmp_path / "theirs.ckpt", mixed())
    assert (tmp_path / "ours.ckpt").read_bytes() == (tmp_path / "theirs.ckpt").read_bytes()
    assert (tmp_path / "ours.ckpt").read_bytes().count(b"a.matrix") == 9
    assert_equal(containers.read(tmp_path / "ours.ckpt").tensors, mixed())
    assert np.array_equal(ms.load_checkpoint(str(tmp_path / "ours.ckpt"))["a.matrix"].asnumpy(), mixed()["a.matrix"])


def test_older_conventions_are_supported(tmp_path: Path) -> None:
    """A scalar with dims [0], and dims packed into one field."""
    message = serialization.Checkpoint()
    value = message.value.add()
    value.tag = "scalar"
    value.tensor.dims.append(0)
    value.tensor.tensor_type = "Float16"
    value.tensor.tensor_content = np.float16(4.5).tobytes()
    tensor = encode_bytes(1, bytes((2, 1))) + encode_bytes(2, b"Int8") + encode_bytes(3, b"12")
    packed = encode_bytes(1, encode_bytes(1, b"p") + encode_bytes(2, tensor))
    (tmp_path / "a").write_bytes(message.SerializeToString() + packed)
    expected = {"scalar": np.array(4.5, np.float16), "p": np.array([[49], [50]], np.int8)}
    assert_equal(containers.read(tmp_path / "a").tensors, expected)


def test_a_file_cut_anywhere_is_refused_or_has_whole_tensors(tmp_path: Path) -> None:
    containers.write(tmp_path / "a.ckpt", lazy(mixed()), APPENDED)
    whole = (tmp_path / "a.ckpt").read_bytes()
    refused = []
    for length in cuts(len(whole)):
        replace_file(tmp_path / "a.ckpt", whole[:length])
        try:
            contents = containers.read(tmp_path / "a.ckpt")
        except UserError as error:
            refused.append(str(error))
        else:  # cut between two entries: only the strict check of names can tell
            whole_ones = {name: tensor for name, tensor in contents.tensors.items() if name not in APPENDED}
            assert_equal(whole_ones, {name: mixed()[name] for name in whole_ones})
    assert len(refused) > 300
    assert all("is not a complete MindSpore checkpoint" in text and "\n" not in text for text in refused)


def test_a_tensor_without_its_last_slice_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mindspore_format, "_SLICE_SIZE", 1024)
    containers.write(tmp_path / "a.ckpt", lazy({"a": np.arange(1000, dtype=np.float32)}))
    whole = (tmp_path / "a.ckpt").read_bytes()
    (tmp_path / "a.ckpt").write_bytes(whole[: whole.index(whole[:12], 12)])  # up to the second Value
    with pytest.raises(UserError, match="'a' has 1024 bytes where its shape"):
        containers.read(tmp_path / "a.ckpt")


def test_damaged_files_never_crash(tmp_path: Path) -> None:
    containers.write(tmp_path / "a.ckpt", lazy({"a": np.ones(3, np.float16), "b": np.ones((2, 2), np.int8)}), APPENDED)
    whole = (tmp_path / "a.ckpt").read_bytes()
    random = np.random.default_rng(1)
    for _ in range(500):
        damaged = bytearray(whole)
        for place in random.integers(0, len(whole), 2):
            damaged[place] = random.integers(0, 256)
        replace_file(tmp_path / "a.ckpt", bytes(damaged))
        with contextlib.suppress(UserError):
            for tensor in containers.read(tmp_path / "a.ckpt").tensors.values():
                assert tensor.read().shape == tensor.shape


def test_a_duplicate_key_is_refused(tmp_path: Path) -> None:
    parts = []
    for name in "aba":
        containers.write(tmp_path / "part.ckpt", lazy({name: np.ones(2, np.float32)}))
        parts.append((tmp_path / "part.ckpt").read_bytes())
    (tmp_path / "a.ckpt").write_bytes(b"".join(parts))
    with pytest.raises(UserError, match="'a' occurs twice"):
        containers.read(tmp_path / "a.ckpt")


def test_wrong_sizes_and_unknown_types_are_refused(tmp_path: Path) -> None:
    def message(kind: str, *dims: int) -> Path:
        message = serialization.Checkpoint()
        value = message.value.add()
        value.tag, value.tensor.tensor_type, value.tensor.tensor_content = "a", kind, bytes(8)
        value.tensor.dims.extend(dims)
        (tmp_path / "a").write_bytes(message.SerializeToString())
        return tmp_path / "a"

    with pytest.raises(UserError, match=r"'a' has 8 bytes where its shape \(3,\) needs 12"):
        containers.read(message("Float32", 3))
    with pytest.raises(UserError, match="negative"):
        containers.read(message("Float32", -1, -2))
    with pytest.raises(UserError, match="'a' has type 'Int4', which is not supported; use a float16 file"):
        containers.read(message("Int4", 8))


def test_a_tensor_unlike_its_announced_shape_is_never_written(tmp_path: Path) -> None:
    wrong = LazyTensor((3,), "float32", lambda: np.ones(4, np.float32))
    for name in ("a.ckpt", "a.safetensors"):
        with pytest.raises(AssertionError):
            containers.write(tmp_path / name, {"a": wrong})
    assert os.listdir(tmp_path) == []
