"""gm/checkpoints/safetensors_io.py: safetensors files, read and written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gm.checkpoints import containers
from gm.errors import UserError
from tests.checkpoints.files import assert_equal, cuts, lazy, mixed, replace_file


def test_a_file_of_the_library_is_read(tmp_path: Path) -> None:
    save_file(mixed(), tmp_path / "a", metadata={"format": "pt", "title": "ü"})
    contents = containers.read(tmp_path / "a")  # content decides, not the ending
    assert_equal(contents.tensors, mixed())
    assert contents.metadata == {"format": "pt", "title": "ü"}


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_our_file_equals_the_librarys_to_the_byte(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    save_file(mixed(), tmp_path / "theirs.safetensors", metadata=metadata)
    containers.write(tmp_path / "ours.safetensors", lazy(mixed()), metadata)
    assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()


def test_the_library_reads_our_file(tmp_path: Path) -> None:
    transposed = np.arange(12, dtype=np.float32).reshape(3, 4).T
    containers.write(tmp_path / "a.safetensors", lazy(mixed() | {"t": transposed}), {"n": 3})
    for name, array in load_file(tmp_path / "a.safetensors").items():
        assert np.array_equal(array, (mixed() | {"t": transposed})[name])
    assert containers.read(tmp_path / "a.safetensors").metadata == {"n": "3"}


@pytest.mark.reference
def test_bfloat16_reads_as_float32(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file as save_torch

    values = torch.tensor([[1.0, -2.5, 3.140625], [float("inf"), 1e38, -1e-38]], dtype=torch.bfloat16)
    save_torch({"b": values, "a": torch.ones(1, dtype=torch.uint8)}, tmp_path / "a.safetensors")
    tensor = containers.read(tmp_path / "a.safetensors").tensors["b"]
    assert (tensor.shape, tensor.dtype, tensor.size) == ((2, 3), "bfloat16", 12)
    assert tensor.read().dtype == np.float32
    assert np.array_equal(tensor.read(), values.float().numpy())


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    containers.write(tmp_path / "a.safetensors", lazy(mixed()))
    whole = (tmp_path / "a.safetensors").read_bytes()
    for length in cuts(len(whole)):
        replace_file(tmp_path / "a.safetensors", whole[:length])
        with pytest.raises(UserError) as caught:
            containers.read(tmp_path / "a.safetensors")
        assert "\n" not in str(caught.value)


def test_a_damaged_header_and_unknown_types_are_refused(tmp_path: Path) -> None:
    def write(header: object) -> Path:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        (tmp_path / "a").write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
        return tmp_path / "a"

    for header in (
        b"{not json",
        {"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}},
    ):
        with pytest.raises(UserError, match="cut off or damaged"):
            containers.read(write(header))
    with pytest.raises(UserError, match=r"'a' has type F8_E8M0.*use a float16 file"):
        containers.read(write({"a": {"dtype": "F8_E8M0", "shape": [8], "data_offsets": [0, 8]}}))
