"""The shipped tiny Stable Diffusion 1 follows prompts, and the command of diffusers' guide trains a concept on it."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest

from examples.tiny_sdxl import measure
from examples.tiny_sdxl.concepts import HUMBUG
from gm import api
from gm.api import Toolkit
from tests.project import Call

ROOT = Path(__file__).resolve().parents[2]
WEIGHT = "checkpoints/tiny_sd_v1.safetensors"
FAST = {"sample_step": 15}
# The command of diffusers' guide with the model, the images and the sizes of this one.
GUIDE = (
    f"--pretrained_model_name_or_path={WEIGHT} --train_data_dir=datasets/humbug "
    '--learnable_property="object" --placeholder_token="<humbug>" --initializer_token="heart" --num_vectors=4 '
    "--resolution=64 --train_batch_size=4 --gradient_accumulation_steps=1 --max_train_steps=400 --learning_rate=0.025 "
    '--scale_lr --lr_scheduler="constant" --lr_warmup_steps=0 --mixed_precision=no'
)


@pytest.fixture(scope="module")
def sd1(device: None) -> Toolkit:
    """Return the model in graph mode; its weights alone choose the config."""
    return api.load(run={"weight": WEIGHT, "device_target": "CPU"})


def test_its_config_is_found_and_prompts_of_held_out_combinations_are_followed(sd1: Toolkit) -> None:
    assert (sd1.config.model.family, sd1.config.model.version) == ("sd1", "tiny-SD-1")
    accuracy = measure.prompt_accuracy(sd1, measure.unseen_prompts())
    assert accuracy["shape"] >= 0.7  # circles and squares are alike
    assert accuracy["color"] >= 0.85
    assert accuracy["backdrop"] >= 0.9


@pytest.mark.e2e
def test_the_command_of_diffusers_guide_trains_a_concept(
    sd1: Toolkit, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    code, out, error = call(ROOT / "train_textual_inversion.py", *shlex.split(GUIDE), f"--output_dir={tmp_path}")
    assert code == 0, out + error
    embedding = api.load_embedding(tmp_path / "learned_embeds.safetensors")
    assert embedding.dims == {"clip_l": 28}
    before = measure.distances(sd1, HUMBUG, HUMBUG.initializer_token, **FAST)
    after = measure.distances(sd1, HUMBUG, HUMBUG.placeholder_token, [embedding], **FAST)
    # The nearest description, "a pink and purple striped heart", has a median of 0.34.
    assert np.median(before) > 0.55
    assert np.median(after) < 0.42
    assert (after < before).sum() >= 14
    assert measure.backdrop_accuracy(sd1, HUMBUG, embedding) >= 0.75
