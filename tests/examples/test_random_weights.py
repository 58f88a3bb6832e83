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
from gm.models import stable_diffusion

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
