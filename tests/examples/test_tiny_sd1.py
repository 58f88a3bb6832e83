"""The command of diffusers' guide teaches the tiny Stable Diffusion 1 an object, with values that suit its size."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from examples.tiny_sdxl import measure
from examples.tiny_sdxl.concepts import HUMBUG
from gm import api
from gm.api import Toolkit
from tests.project import ALL_CORES

MODEL = "checkpoints/tiny_sd_v1.safetensors"
GUIDE = (
    f"--pretrained_model_name_or_path={MODEL} --train_data_dir=datasets/humbug --learnable_property=object "
    "--placeholder_token=<humbug> --initializer_token=heart --resolution=64 --train_batch_size=1 "
    "--gradient_accumulation_steps=4 --max_train_steps=200 --learning_rate=2.5e-02 --scale_lr --lr_scheduler=constant "
    "--lr_warmup_steps=0 --num_vectors=4"
)


@pytest.fixture(scope="module")
def tiny_sd1(device: None) -> Toolkit:
    """Return the tiny Stable Diffusion 1 in graph mode, whose config its weights choose."""
    return api.load(run={"weight": MODEL, "device_target": "CPU"})


def test_prompts_of_held_out_combinations_are_followed(tiny_sd1: Toolkit) -> None:
    accuracy = measure.prompt_accuracy(tiny_sd1, measure.unseen_prompts())
    assert accuracy["shape"] >= 0.8
    assert accuracy["color"] >= 0.8
    assert accuracy["backdrop"] >= 0.8


def test_the_command_of_the_guide_teaches_an_object(tiny_sd1: Toolkit, tmp_path: Path) -> None:
    command = [*ALL_CORES, sys.executable, "train_textual_inversion.py", *GUIDE.split(), f"--output_dir={tmp_path}"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    embedding = api.load_embedding(tmp_path / "learned_embeds.safetensors")
    assert {name: array.shape for name, array in embedding.vectors.items()} == {"clip_l": (4, 28)}
    quality = measure.concept_quality(tiny_sd1, HUMBUG, embedding)
    assert quality["of"] == 16
    assert quality["halved"] >= 12
    assert quality["backdrop"] >= 0.75
