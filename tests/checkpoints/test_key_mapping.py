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
from gm.models import stable_diffusion

# Of the sorted lines "name<TAB>sizes,joined,by,commas\n" of sd_xl_base_1.0.safetensors (huggingface.co/stabilityai/
# stable-diffusion-xl-base-1.0), position_ids left out.
PUBLISHED_SHA256 = "3bab1f809ccaca6d88c7a956ab7d32ca7b13e61ffc55bc7d044e49493b1c1217"
# The same of sd_xl_refiner_1.0.safetensors (huggingface.co/stabilityai/stable-diffusion-xl-refiner-1.0).
REFINER_SHA256 = "c06ca04f58fdc45b25d579dcfd520cdc78d0c0a7c44b3f6c88b94335ec0df0ed"

# The same of v1-5-pruned-emaonly.safetensors (huggingface.co/stable-diffusion-v1-5/stable-diffusion-v1-5) and of
# v2-1_768-ema-pruned.safetensors (huggingface.co/stabilityai/stable-diffusion-2-1), without the tables of the noise
# schedule and, of the latter, what Stable Diffusion 2 does not use: `resblocks.23`, `text_projection`, `logit_scale`.
SD1_SHA256 = "cbd61750966bce48461285039cdc202c548ff65a4a3b32452039c0498244999a"
SD2_SHA256 = "9c950dca41ce514de3675d7f500ce4d2100214f268ded0f83a4c72bca38e9cee"

REFINER_YAML = Path(__file__).resolve().parents[2] / "configs" / "sampling" / "sd_xl_refiner.yaml"


@pytest.fixture(scope="module")
def full_size() -> ParameterShapes:
    return key_mapping.parameter_shapes(stable_diffusion.build(ModelConfig()))


def digest(shapes: ParameterShapes) -> str:
    lines = sorted(
        f"{key_mapping.published_name(name)}\t{','.join(map(str, shape))}\n" for name, shape in shapes.items()
    )
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def test_the_full_size_model_has_the_published_keys_and_shapes(full_size: ParameterShapes) -> None:
    assert len(full_size) == 2514
    assert digest(full_size) == PUBLISHED_SHA256


def test_the_full_size_refiner_has_the_published_keys_and_shapes() -> None:
    shapes = key_mapping.parameter_shapes(stable_diffusion.build(config.load(REFINER_YAML).model))
    assert len(shapes) == 1858
    assert digest(shapes) == REFINER_SHA256
    unet = [shape for name, shape in shapes.items() if name.startswith("model.")]
    assert sum(map(math.prod, unet)) == 2_259_526_660


@pytest.mark.parametrize(
    ("name", "sha256", "count", "parameters"),
    [
        ("sd_v1.5", SD1_SHA256, 1130, 1_066_235_307),
        ("sd_v2.1_base", SD2_SHA256, 1214, 1_289_952_427),
        ("sd_v2.1_768_v", SD2_SHA256, 1214, 1_289_952_427),
    ],
)
def test_full_size_stable_diffusion_has_the_published_keys_and_shapes(
    name: str, sha256: str, count: int, parameters: int
) -> None:
    yaml = REFINER_YAML.parents[1] / "training" / f"{name}_textual_inversion.yaml"
    shapes = key_mapping.parameter_shapes(stable_diffusion.build(config.load(yaml).model))
    assert len(shapes) == count
    assert digest(shapes) == sha256
    assert sum(map(math.prod, shapes.values())) == parameters


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
