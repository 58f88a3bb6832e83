"""gm/checkpoints/diffusers_format.py: folders of other variants, of PyTorch files, with configs and added tokens."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from gm.checkpoints import containers, diffusers_format, loading
from gm.errors import UserError
from tests.checkpoints.diffusers_folders import assert_published, save_diffusers_folder
from tests.reference.case import Case

pytestmark = pytest.mark.reference

NETWORKS = ("unet", "text_encoder", "text_encoder_2", "vae")


@pytest.fixture(scope="module")
def saved(smallest: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_diffusers_folder(smallest, tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def weight_file(folder: Path, network: str) -> Path:
    (path,) = (folder / network).glob("*.safetensors")
    return path


def as_torch_files(folder: Path, legacy: bool = False) -> None:
    """Replace each network's file with the `.bin` of that name, as before safetensors."""
    for network in NETWORKS:
        path = weight_file(folder, network)
        stem = "pytorch_model" if path.stem == "model" else path.stem
        tensors = {name: torch.from_numpy(array) for name, array in load_file(path).items()}
        torch.save(tensors, path.with_name(f"{stem}.bin"), _use_new_zipfile_serialization=not legacy)
        path.unlink()


@pytest.mark.parametrize("variant", ["bf16", "fp32", "non_ema", "ema", "mine"])
def test_a_folder_of_one_variant_is_read(smallest: Case, folder: Path, variant: str) -> None:
    for network in NETWORKS:
        path = weight_file(folder, network)
        path.rename(path.with_name(f"{path.stem}.{variant}.safetensors"))
    assert_published(diffusers_format.read(folder, smallest.config), smallest)


def test_bfloat16_files_have_their_own_values(smallest: Case, folder: Path) -> None:
    from safetensors.torch import save_file as save_torch

    for network in NETWORKS:
        path = weight_file(folder, network)
        tensors = {name: torch.from_numpy(array).bfloat16() for name, array in load_file(path).items()}
        save_torch(tensors, path.with_name(f"{path.stem}.bf16.safetensors"))
        path.unlink()
    tensors = diffusers_format.read(folder, smallest.config)
    name = "first_stage_model.decoder.conv_out.weight"
    rounded = torch.from_numpy(smallest.weights[name]).bfloat16().float().numpy()
    assert (tensors[name].dtype, np.array_equal(tensors[name].read(), rounded)) == ("bfloat16", True)


@pytest.mark.parametrize("other", ["non_ema", "bf16", "mine"])
def test_the_file_without_a_variant_comes_first(smallest: Case, folder: Path, other: str) -> None:
    path = weight_file(folder, "unet")
    changed = {name: array + 1 for name, array in load_file(path).items()}
    save_file(changed, path.with_name(f"{path.stem}.{other}.safetensors"))
    assert_published(diffusers_format.read(folder, smallest.config), smallest)


def test_weights_before_averaging_come_last(smallest: Case, folder: Path) -> None:
    path = weight_file(folder, "unet")
    changed = {name: array + 1 for name, array in load_file(path).items()}
    save_file(changed, path.with_name(f"{path.stem}.non_ema.safetensors"))
    path.rename(path.with_name(f"{path.stem}.fp16.safetensors"))
    assert_published(diffusers_format.read(folder, smallest.config), smallest)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_folder_of_pytorch_files_is_read(smallest: Case, folder: Path, legacy: bool) -> None:
    as_torch_files(folder, legacy)
    assert not list(folder.rglob("*.safetensors"))
    assert_published(diffusers_format.read(folder, smallest.config), smallest)


def test_shards_of_pytorch_files_are_read(smallest: Case, folder: Path) -> None:
    as_torch_files(folder)
    path = folder / "unet" / "diffusion_pytorch_model.bin"
    tensors = torch.load(path)
    parts = {"a.bin": list(tensors)[::2], "b.bin": list(tensors)[1::2]}
    for name, keys in parts.items():
        torch.save({key: tensors[key] for key in keys}, path.with_name(name))
    path.unlink()
    weight_map = {key: name for name, keys in parts.items() for key in keys}
    path.with_name("diffusion_pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert_published(diffusers_format.read(folder, smallest.config), smallest)


def test_safetensors_come_before_pytorch_files(smallest: Case, folder: Path) -> None:
    torch.save({"a": torch.ones(1)}, folder / "unet" / "diffusion_pytorch_model.bin")
    assert_published(diffusers_format.read(folder, smallest.config), smallest)


def test_a_pytorch_file_that_could_run_a_program_is_not_read(smallest: Case, folder: Path) -> None:
    weight_file(folder, "unet").unlink()
    torch.save({"a": torch.ones(1), "f": shutil.rmtree}, folder / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match=r"asks for shutil\.rmtree, .*get the model as \.safetensors"):
        diffusers_format.read(folder, smallest.config)


def write_config(folder: Path, name: str, **fields: object) -> None:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | fields))


def test_what_the_folder_says_goes_into_the_converted_file(smallest: Case, folder: Path, tmp_path: Path) -> None:
    write_config(folder, "scheduler/scheduler_config.json", prediction_type="epsilon", beta_end=0.012)
    for suffix in containers.SUFFIXES:
        loading.convert(folder, tmp_path / f"a{suffix}", smallest.config, "float16")
        metadata = containers.read(tmp_path / f"a{suffix}").metadata
        expected = {
            "modelspec.prediction_type": "epsilon",
            "scheduler.beta_end": "0.012",
            "vae.scaling_factor": "0.3",
        }
        assert {key: value for key, value in metadata.items() if key != "format"} == expected


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("scheduler/scheduler_config.json", {"prediction_type": "v_prediction"}, "v_prediction instead of epsilon"),
        ("scheduler/scheduler_config.json", {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr true"),
        ("vae/config.json", {"scaling_factor": 0.18215}, "scaling_factor 0.18215 instead of 0.3"),
        ("text_encoder_2/config.json", {"hidden_act": "quick_gelu"}, "hidden_act quick_gelu instead of gelu"),
    ],
)
def test_a_folder_that_contradicts_the_model_is_not_converted(
    smallest: Case, folder: Path, tmp_path: Path, name: str, fields: dict[str, object], message: str
) -> None:
    write_config(folder, name, **fields)
    with pytest.raises(UserError, match=f"{name} says .*{message}"):
        loading.convert(folder, tmp_path / "a.ckpt", smallest.config, "float16")
    assert not (tmp_path / "a.ckpt").exists()


def test_a_full_pipeline_export_of_a_textual_inversion_is_taken(
    smallest: Case, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """diffusers' --save_as_full_pipeline appends the placeholder tokens to both token tables and vocabularies."""
    caplog.set_level(logging.INFO)
    for network in ("text_encoder", "text_encoder_2"):
        path = weight_file(folder, network)
        tensors = load_file(path)
        (key,) = (key for key in tensors if "token_embedding" in key)
        tensors[key] = np.concatenate((tensors[key], np.ones((2, tensors[key].shape[1]), np.float32)))
        save_file(tensors, path)
        write_config(folder, f"{network}/config.json", vocab_size=49410)
    loading.convert(folder, tmp_path / "a.safetensors", smallest.config, "float32")
    converted = load_file(tmp_path / "a.safetensors")
    tables = [name for name in converted if "token_embedding" in name]
    assert all(np.array_equal(converted[name], smallest.weights[name]) for name in tables)
    assert all(f"rows 49408 to 49409 of {name}" in caplog.text for name in tables)


def test_text_encoder_1_with_its_projection_is_taken(smallest: Case, folder: Path, tmp_path: Path) -> None:
    path = weight_file(folder, "text_encoder")
    save_file(load_file(path) | {"text_projection.weight": np.eye(48, dtype=np.float32)}, path)
    loading.convert(folder, tmp_path / "a.safetensors", smallest.config, "float32")
    assert set(load_file(tmp_path / "a.safetensors")) == set(smallest.weights)
