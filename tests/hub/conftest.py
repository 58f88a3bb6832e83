"""Fixtures of publishing: an embedding file, an image generated with it, and the script."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest

from gm.sampling import image_files
from tests.hub.embedding_files import save_embedding
from tests.project import Call

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "push_to_hub.py"


@pytest.fixture
def embedding_path(tmp_path: Path) -> Path:
    return save_embedding(tmp_path / "a_7_ti.ckpt")


@pytest.fixture
def generated_image(tmp_path: Path) -> Path:
    """Return an image with generation parameters."""
    noise = np.random.default_rng(3).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    parameters = {
        "prompt": "a <cat-toy> | `red`",
        "seed": 11,
        "height": None,
        "sampler": "euler",
        "weight": "secret.ckpt",
    }
    parameters["textual_inversion_weight"] = ["secret_ti.ckpt"]
    image_files.write(noise, parameters, tmp_path / "generated.png")
    return tmp_path / "generated.png"


@pytest.fixture
def publish(call: Call) -> Call:
    """Return the function that calls the script."""
    return functools.partial(call, SCRIPT)
