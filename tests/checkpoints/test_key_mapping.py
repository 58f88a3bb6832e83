"""gm/checkpoints/key_mapping.py: MindSpore's parameter names and the published keys."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import pytest

from gm import config
from gm.checkpoints import key_mapping
from gm.checkpoints.key_mapping import ParameterShapes
from gm.config.model import ModelConfig
from gm.models import sdxl

# Of the sorted lines "name<TAB>sizes,joined,by,commas\n" of sd_xl_base_1.0.safetensors (huggingface.co/stabilityai/
# stable-diffusion-xl-base-1.0), position_ids left out.
PUBLISHED_SHA256 = "3bab1f809ccaca6d88c7a956ab7d32ca7b13e61ffc55bc7d044e49493b1c1217"
# The same of sd_xl_refiner_1.0.safetensors (huggingface.co/stabilityai/stable-diffusion-xl-refiner-1.0).
REFINER_SHA256 = "c06ca04f58fdc45b25d579dcfd520cdc78d0c0a7c44b3f6c88b94335ec0df0ed"

REFINER_YAML = Path(__file__).resolve().parents[2] / "configs" / "sampling" / "sd_xl_refiner.yaml"


@pytest.fixture(scope="module")
def full_size() -> ParameterShapes:
    return key_mapping.parameter_shapes(sdxl.build(ModelConfig()))


def digest(shapes: ParameterShapes) -> str:
    lines = sorted(
        f"{key_mapping.published_name(name)}\t{','.join(map(str, shape))}\n" for name, shape in shapes.items()
    )
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def test_the_full_size_model_has_the_published_keys_and_shapes(full_size: ParameterShapes) -> None:
    assert len(full_size) == 2514
    assert digest(full_size) == PUBLISHED_SHA256


def test_the_full_size_refiner_has_the_published_keys_and_shapes() -> None:
    shapes = key_mapping.parameter_shapes(sdxl.build(config.load(REFINER_YAML).model))
    assert len(shapes) == 1858
    assert digest(shapes) == REFINER_SHA256
    unet = [shape for name, shape in shapes.items() if name.startswith("model.")]
    assert sum(map(math.prod, unet)) == 2_259_526_660


def test_published_keys_are_unique(full_size: ParameterShapes) -> None:
    assert len({key_mapping.published_name(name) for name in full_size}) == len(full_size)


@pytest.mark.parametrize(
    ("ours", "published"),
    [
        ("a.norm.gamma", "a.norm.weight"),
        ("a.norm.beta", "a.norm.bias"),
        ("token_embedding.embedding_table", "token_embedding.weight"),
        ("a.conv.weight", "a.conv.weight"),
        ("a.gamma.bias", "a.gamma.bias"),
        ("a.embedding_table2", "a.embedding_table2"),
        ("logit_scale", "logit_scale"),
    ],
)
def test_three_suffixes_differ_from_the_published_keys(ours: str, published: str) -> None:
    assert key_mapping.published_name(ours) == published


def test_no_parameter_name_is_the_published_key_of_another(full_size: ParameterShapes) -> None:
    """So a file can be read without knowing which names it has."""
    published = {key_mapping.published_name(name): name for name in full_size}
    assert all(published.get(name, name) == name for name in full_size)
