"""gm/checkpoints/torch_format.py: a model's PyTorch file, read tensor by tensor."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from gm.checkpoints import containers, loading, torch_format
from gm.errors import UserError
from tests.checkpoints.files import little_memory, mutations, replace_file
from tests.reference.case import Case

pytestmark = pytest.mark.reference


@pytest.mark.parametrize("legacy", [False, True])
def test_a_single_pytorch_file_converts(smallest: Case, tmp_path: Path, legacy: bool) -> None:
    state_dict = {name: torch.from_numpy(array) for name, array in smallest.weights.items()}
    lightning = {"state_dict": state_dict, "epoch": 3, "global_step": 3000, "pytorch-lightning_version": "1.4"}
    for content in (state_dict, lightning):
        torch.save(content, tmp_path / "a.ckpt", _use_new_zipfile_serialization=not legacy)
        loading.convert(tmp_path / "a.ckpt", tmp_path / "b.safetensors", smallest.config, "float32")
        converted = load_file(tmp_path / "b.safetensors")
        assert set(converted) == set(smallest.weights)
        assert all(np.array_equal(converted[name], array) for name, array in smallest.weights.items())


def test_the_state_dict_of_a_module_is_read(tmp_path: Path) -> None:
    """Its `_metadata`, an entry for every module, is not a tensor."""
    module = torch.nn.Sequential(*(torch.nn.Linear(2, 2) for _ in range(1500)))
    torch.save(module.state_dict(), tmp_path / "a.bin")
    tensors, _ = torch_format.read_weights(tmp_path / "a.bin")
    assert len(tensors) == 3000
    assert np.array_equal(tensors["1499.weight"].read(), module[1499].weight.detach().numpy())


def test_v_prediction_of_a_pytorch_file_is_refused(smallest: Case, tmp_path: Path) -> None:
    state_dict = {name: torch.from_numpy(array) for name, array in smallest.weights.items()}
    torch.save(state_dict | {"v_pred": torch.zeros(0)}, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="the tensor v_pred says prediction_type v_prediction"):
        loading.convert(tmp_path / "a.ckpt", tmp_path / "b.ckpt", smallest.config, "float16")


@pytest.mark.parametrize("legacy", [False, True])
def test_a_large_file_is_not_read_into_memory(tmp_path: Path, legacy: bool) -> None:
    large = torch.zeros(100, 1024, 256)  # 105 MB
    torch.save({"large": large, "small": torch.ones(2)}, tmp_path / "a.bin", _use_new_zipfile_serialization=not legacy)
    with little_memory():
        tensors, _ = torch_format.read_weights(tmp_path / "a.bin")
        assert tensors["small"].read().tolist() == [1, 1]
    assert tensors["large"].shape == (100, 1024, 256)


@pytest.mark.parametrize("legacy", [False, True])
def test_damage_is_reported_in_one_line(tmp_path: Path, legacy: bool) -> None:
    path = tmp_path / "a.bin"
    torch.save({"a": torch.randn(50)}, path, _use_new_zipfile_serialization=not legacy)
    whole = path.read_bytes()
    refusals = []
    for damaged in mutations(whole, 300):
        replace_file(path, damaged)
        try:
            with little_memory():
                for tensor in torch_format.read_weights(path)[0].values():
                    tensor.read()
        except UserError as error:
            refusals.append(str(error))
    assert refusals
    assert not any("\n" in message for message in refusals)


def test_a_description_larger_than_any_model_needs_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({str(number): torch.ones(1) for number in range(100)}, tmp_path / "a.bin")
    monkeypatch.setattr(torch_format, "_MAX_PICKLE_SIZE", 1000)
    with pytest.raises(UserError, match="larger than any model needs"):
        torch_format.read_weights(tmp_path / "a.bin")


def test_programs_and_other_values_are_refused(tmp_path: Path) -> None:
    torch.save({"a": shutil.rmtree}, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match=r"asks for shutil\.rmtree, .*get the model as \.safetensors"):
        containers.read_weights(tmp_path / "a.ckpt")
    torch.save(torch.ones(3), tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="it holds no dict of tensors"):
        containers.read_weights(tmp_path / "a.ckpt")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("readme.txt", "no weights")
    with pytest.raises(UserError, match=r"there is no data\.pkl"):
        containers.read_weights(tmp_path / "b.zip")


@pytest.mark.parametrize("length", [640, 896, 19280])
def test_safetensors_whose_header_length_looks_like_pytorch_are_recognized(tmp_path: Path, length: int) -> None:
    """0x0280 and 0x0380 begin like a pickle, 19280 like a zip archive."""
    path = tmp_path / "a.safetensors"
    for padding in range(max(length - 200, 0), length):
        save_file({"a": np.ones(3, np.float32)}, path, {"x": "x" * padding})
        if int.from_bytes(path.read_bytes()[:8], "little") == length:
            break
    assert path.read_bytes()[:2] in (b"\x80\x02", b"\x80\x03", b"PK")
    assert not torch_format.is_torch_file(path)
    assert containers.read_weights(path).tensors["a"].read().tolist() == [1, 1, 1]
