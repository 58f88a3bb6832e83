"""What is published: an embedding file, and an image that was drawn with it."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest

from gm.sampling import image_files as images
from tests.hub.embedding_files import saved
from tests.project import Call

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "push_to_hub.py"


@pytest.fixture
def learned(tmp_path: Path) -> Path:
    return saved(tmp_path / "a_7_ti.ckpt")


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    """An image as the toolkit draws it."""
    noise = np.random.default_rng(3).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    recipe = {"prompt": "a <cat-toy> | `red`", "seed": 11, "height": None, "sampler": "euler", "weight": "secret.ckpt"}
    images.write(noise, {**recipe, "textual_inversion_weight": ["secret_ti.ckpt"]}, tmp_path / "drawn.png")
    return tmp_path / "drawn.png"


@pytest.fixture
def publish(call: Call) -> Call:
    """Return the function that calls the script."""
    return functools.partial(call, SCRIPT)
