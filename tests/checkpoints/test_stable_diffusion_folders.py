"""Diffusers folders of Stable Diffusion 1 and 2, as diffusers and transformers save them, and their configs."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from gm.checkpoints import accepted_values, diffusers_configs, diffusers_format, loading, statements
from gm.config.model import ModelConfig, ScheduleConfig
from gm.errors import UserError
from tests.checkpoints.diffusers_folders import assert_published, save_diffusers_folder
from tests.checkpoints.published_configs import UNET, VAE, text_encoder
from tests.checkpoints.test_ldm_layout import full_size
from tests.reference.case import Case

pytestmark = pytest.mark.reference

# Of huggingface.co/stable-diffusion-v1-5/stable-diffusion-v1-5 and stabilityai/stable-diffusion-2-1; what is not there
# has diffusers' default, which is that of SDXL's file, too, but for these.
NOT_THERE = {name: None for name in UNET if name.startswith(("addition_", "projection_"))}
BLOCKS = {"block_out_channels": [320, 640, 1280, 1280], "transformer_layers_per_block": 1} | NOT_THERE
UNETS = {
    "sd1": UNET | BLOCKS | {"attention_head_dim": 8, "cross_attention_dim": 768, "use_linear_projection": False},
    "sd2": UNET | BLOCKS | {"attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024},
}
SCHEDULER = {
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "trained_betas": None,
}
PNDM = SCHEDULER | {"_class_name": "PNDMScheduler", "skip_prk_steps": True}
V_DDIM = SCHEDULER | {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}


def configs(family: str, scheduler: dict[str, Any] = PNDM) -> dict[str, dict[str, Any]]:
    encoder = {"sd1": text_encoder(768, 12, 12, "quick_gelu"), "sd2": text_encoder(1024, 23, 16, "gelu")}[family]
    return {
        "scheduler/scheduler_config.json": scheduler,
        "unet/config.json": UNETS[family],
        "vae/config.json": VAE | {"scaling_factor": 0.18215, "sample_size": 512},
        "text_encoder/config.json": encoder | {"projection_dim": 512},
        "tokenizer/tokenizer_config.json": {"pad_token": {"sd1": "<|endoftext|>", "sd2": "!"}[family]},
        "model_index.json": {
            "_class_name": "StableDiffusionPipeline",
            "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        },
    }


def write(folder: Path, files: dict[str, dict[str, Any]]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))


def check(folder: Path, model: ModelConfig) -> None:
    read = diffusers_configs.read(folder, diffusers_format.networks(model))
    statements.check(read, accepted_values.accepted_values(model), folder)


def v_prediction(model: ModelConfig) -> ModelConfig:
    return dataclasses.replace(model, schedule=ScheduleConfig(prediction="v_prediction"))


def test_a_folder_equals_the_published_file(sd_case: Case, tmp_path: Path) -> None:
    assert_published(diffusers_format.read(save_diffusers_folder(sd_case, tmp_path), sd_case.config), sd_case)


@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_text_encoders_of_all_versions_of_transformers_are_read(sd_case: Case, tmp_path: Path, prefix: str) -> None:
    folder = save_diffusers_folder(sd_case, tmp_path)
    path = folder / "text_encoder" / "model.safetensors"
    tensors = {f"{prefix}{name.removeprefix('text_model.')}": array for name, array in load_file(path).items()}
    save_file(tensors | {f"{prefix}embeddings.position_ids": np.arange(77)[None]}, path)
    assert_published(diffusers_format.read(folder, sd_case.config), sd_case)


def test_bin_files_are_read(sd_case: Case, tmp_path: Path) -> None:
    folder = save_diffusers_folder(sd_case, tmp_path)
    for path in folder.rglob("*.safetensors"):
        state_dict = {name: torch.from_numpy(array) for name, array in load_file(path).items()}
        path.unlink()
        name = "pytorch_model.bin" if path.stem == "model" else f"{path.stem}.bin"
        torch.save(state_dict, path.with_name(name))
    assert_published(diffusers_format.read(folder, sd_case.config), sd_case)


def test_weights_before_averaging_are_the_last_choice(cases: Callable[[str], Case], tmp_path: Path) -> None:
    case = cases("small-sd1")
    folder = save_diffusers_folder(case, tmp_path)
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.rename(path.with_name("diffusion_pytorch_model.non_ema.safetensors"))
    assert_published(diffusers_format.read(folder, case.config), case)
    save_file(
        {
            name: array * np.float32(2)
            for name, array in load_file(path.with_name("diffusion_pytorch_model.non_ema.safetensors")).items()
        },
        path,
    )
    key = "model.diffusion_model.out.2.bias"
    assert np.array_equal(diffusers_format.read(folder, case.config)[key].read(), 2 * case.weights[key])


def test_linear_projections_of_an_early_folder_are_reshaped(cases: Callable[[str], Case], tmp_path: Path) -> None:
    case = cases("like-sd2")
    folder = save_diffusers_folder(case, tmp_path / "model")
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    for name in [name for name in tensors if ".proj_in.weight" in name or ".proj_out.weight" in name]:
        tensors[name] = tensors[name][:, :, None, None]
    save_file(tensors, path)
    loading.convert(folder, tmp_path / "a.safetensors", case.config, "float32")
    converted = load_file(tmp_path / "a.safetensors")
    assert set(converted) == set(case.weights)
    assert all(np.array_equal(converted[name], array) for name, array in case.weights.items())


@pytest.mark.parametrize(("family", "scheduler"), [("sd1", PNDM), ("sd2", PNDM), ("sd2", V_DDIM)])
def test_the_published_configs_fit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, family: str, scheduler: dict[str, Any]
) -> None:
    caplog.set_level(logging.INFO)
    write(tmp_path, configs(family, scheduler))
    model = full_size(family)
    check(tmp_path, v_prediction(model) if scheduler is V_DDIM else model)
    (message,) = caplog.messages
    assert message.startswith(
        f"{tmp_path}: not used: model_index.json says safety_checker StableDiffusionSafetyChecker, "
    )
    assert message.endswith(f'sampler _class_name "{scheduler["_class_name"]}" (--sampler and --schedule choose)')


@pytest.mark.parametrize(
    ("family", "name", "fields", "message"),
    [
        (
            "sd2",
            "scheduler/scheduler_config.json",
            {"prediction_type": "v_prediction"},
            "v_prediction instead of epsilon",
        ),
        ("sd1", "unet/config.json", {"in_channels": 9}, "in_channels 9 instead of 4; inpainting models have 9"),
        ("sd2", "unet/config.json", {"in_channels": 5}, "in_channels 5 instead of 4; .*depth-to-image models 5"),
        ("sd2", "unet/config.json", {"in_channels": 7}, "in_channels 7 instead of 4; .*upscalers 7"),
        ("sd2", "unet/config.json", {"class_embed_type": "projection"}, "unCLIP models are conditioned on an image"),
        ("sd2", "unet/config.json", {"num_class_embeds": 1000}, "upscalers have noise levels as classes"),
        ("sd1", "unet/config.json", {"attention_head_dim": 5}, "attention_head_dim 5"),
        ("sd2", "unet/config.json", {"attention_head_dim": 8}, "attention_head_dim 8"),
        ("sd1", "unet/config.json", {"layers_per_block": 1}, "layers_per_block 1; use a model of the architecture"),
        (
            "sd1",
            "unet/config.json",
            {"addition_embed_type": "text_time"},
            "addition_embed_type text_time instead of none",
        ),
        ("sd1", "text_encoder/config.json", {"hidden_act": "gelu"}, "hidden_act gelu instead of quick_gelu"),
        ("sd2", "text_encoder/config.json", {"num_hidden_layers": 24}, "num_hidden_layers 24 instead of 23"),
        ("sd1", "vae/config.json", {"scaling_factor": 0.13025}, "scaling_factor 0.13025 instead of 0.18215"),
    ],
)
def test_statements_that_contradict_the_model_are_refused(
    tmp_path: Path, family: str, name: str, fields: dict[str, Any], message: str
) -> None:
    files = configs(family)
    write(tmp_path, files | {name: files[name] | fields})
    with pytest.raises(UserError, match=message):
        check(tmp_path, full_size(family))


def test_the_family_of_a_folder_is_found(
    cases: Callable[[str], Case], smallest: Case, refiner: Case, tmp_path: Path
) -> None:
    """With its configs, and without them; widths of small models say nothing."""
    expected = {"like-sd1": "sd1", "small-sd1": "sd1", "like-sd2": "sd2", "reversed": "base", "refiner": "refiner"}
    for name, kind in expected.items():
        folder = save_diffusers_folder(cases(name), tmp_path / name)
        assert diffusers_format.detect_family(folder) == kind
        for config in folder.rglob("config.json"):
            config.unlink()
        assert diffusers_format.detect_family(folder) == kind
    assert diffusers_format.detect_family(tmp_path) == ""
    for family in ("sd1", "sd2"):
        write(tmp_path / f"published {family}", configs(family))
        assert diffusers_format.detect_family(tmp_path / f"published {family}") == family


def test_a_folder_of_another_family_is_named(cases: Callable[[str], Case], smallest: Case, tmp_path: Path) -> None:
    folder = save_diffusers_folder(cases("small-sd1"), tmp_path / "model")
    with pytest.raises(
        UserError, match=r"model is Stable Diffusion 1, but the config describes SDXL \(reversed\); leave out"
    ):
        loading.convert(folder, tmp_path / "a.ckpt", smallest.config, "float32")
    with pytest.raises(UserError, match=r"is Stable Diffusion 1, but the config describes Stable Diffusion 2"):
        loading.convert(folder, tmp_path / "a.ckpt", cases("like-sd2").config, "float32")
    shutil.rmtree(folder / "text_encoder")
    with pytest.raises(UserError, match=r"is not a diffusers Stable Diffusion 1 folder: it has no text_encoder$"):
        loading.convert(folder, tmp_path / "a.ckpt", cases("small-sd1").config, "float32")
