"""Checkpoints with random weights, of any size."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from examples.tiny_sdxl import random_weights
from gm import config as configuration
from gm.checkpoints import loading
from gm.config import Config
from gm.config.model import ModelConfig
from gm.models import stable_diffusion
from tests.reference.configs import LIKE_SD2, SMALL_SD1

TINY = "configs/training/tiny_textual_inversion.yaml"


def test_random_checkpoint_is_repeatable_has_published_names_and_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        target = str(tmp_path / f"{name}.safetensors")
        monkeypatch.setattr(sys, "argv", ["random_weights.py", "--target", target, "--seed", seed])
        random_weights.main()
    first, again, other = ((tmp_path / f"{name}.safetensors").read_bytes() for name in "abc")
    assert first == again
    assert first != other
    tensors = load_file(tmp_path / "a.safetensors")
    assert {t.dtype for t in tensors.values()} == {np.dtype(np.float16)}
    assert "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight" in tensors
    model = configuration.load(TINY).model
    built = stable_diffusion.build(model)
    loading.load_weights(built, tmp_path / "a.safetensors", model)
    assert len(list(built.get_parameters())) == len(tensors)


@pytest.mark.parametrize(
    ("model", "name", "shape"),
    [
        (SMALL_SD1, "cond_stage_model.transformer.text_model.final_layer_norm.weight", (20,)),
        (SMALL_SD1, "model.diffusion_model.middle_block.1.proj_in.weight", (48, 48, 1, 1)),
        (LIKE_SD2, "cond_stage_model.model.transformer.resblocks.3.attn.in_proj_weight", (120, 40)),
        (LIKE_SD2, "model.diffusion_model.middle_block.1.proj_in.weight", (128, 128)),
    ],
    ids=lambda value: value.version if isinstance(value, ModelConfig) else "",
)
def test_random_checkpoint_of_stable_diffusion_has_its_names_and_shapes(
    model: ModelConfig, name: str, shape: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration.save(Config(model=model), tmp_path / "config.yaml")
    target = tmp_path / "random.safetensors"
    flags = ["--config", str(tmp_path / "config.yaml"), "--target", str(target)]
    monkeypatch.setattr(sys, "argv", ["random_weights.py", *flags])
    random_weights.main()
    tensors = load_file(target)
    assert tensors[name].shape == shape
    built = stable_diffusion.build(model)
    loading.load_weights(built, target, model)
    assert len(list(built.get_parameters())) == len(tensors)
