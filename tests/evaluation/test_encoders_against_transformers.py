"""Image encoders and their preprocessing against transformers, which reads the same folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import pytest
from PIL import Image

from gm.evaluation import encoders
from gm.evaluation.encoders import ImageEncoder
from gm.runtime import rng
from gm.runtime.backend import Backend
from gm.text.tokenizer import Tokenizer
from tests.evaluation import encoder_folders
from tests.evaluation.encoder_folders import CLIP_B32, CLIP_L14, DINO_S16, DINOV2_B14, NAMES
from tests.reference.inputs import relative_error

TOLERANCE = 1e-4
PYNATIVE = Backend("CPU", graph=False, dtype=ms.float32)
SIZES = ((90, 61), (64, 64), (37, 111), (200, 150))  # width and height; smaller and larger than the encoders' images

pytestmark = [pytest.mark.reference, pytest.mark.usefixtures("no_grad")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("encoders")
    return {name: encoder_folders.write(base / name, name) for name in NAMES}


def load(name: str, folder: Path) -> ImageEncoder:
    return encoders.load_clip("--clip", str(folder)) if "clip" in name else encoders.load_dino("--dino", str(folder))


def images() -> list[Image.Image]:
    """Return smooth random images: noise alone would hide an error of the resizing."""
    result = []
    for number, (width, height) in enumerate(SIZES):
        noise = rng.generator(number, "evaluation").integers(0, 256, (6, 5, 3), dtype=np.uint8)
        result.append(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))
    return result


def reference_pixels(folder: Path, name: str) -> Any:
    from transformers import CLIPImageProcessorPil, ViTImageProcessorPil
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

    kinds = {DINO_S16: ViTImageProcessorPil, DINOV2_B14: BitImageProcessorPil}
    processor = kinds.get(name, CLIPImageProcessorPil).from_pretrained(folder)
    return processor(images=images(), return_tensors="pt")["pixel_values"]


def reference_model(folder: Path, name: str) -> Any:
    from transformers import CLIPModel, Dinov2Model, ViTModel

    kind: Any = {DINO_S16: ViTModel, DINOV2_B14: Dinov2Model}.get(name, CLIPModel)
    options = {"add_pooling_layer": False} if name == DINO_S16 else {}
    model, loaded = kind.from_pretrained(folder, output_loading_info=True, **options)
    assert not loaded["missing_keys"]
    assert not loaded["unexpected_keys"]
    return model.eval()


def unit(features: Any) -> np.ndarray:
    values = features.numpy()
    return values / np.linalg.norm(values, axis=1, keepdims=True)


@pytest.mark.parametrize("name", NAMES)
def test_pixels_are_those_of_the_published_processor(name: str, folders: dict[str, Path]) -> None:
    encoder = load(name, folders[name])
    ours = np.stack([encoder.preprocessing(image) for image in images()])
    assert relative_error(ours, reference_pixels(folders[name], name).numpy()) < 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_image_features(name: str, folders: dict[str, Path]) -> None:
    model, pixels = reference_model(folders[name], name), reference_pixels(folders[name], name)
    if name in (CLIP_B32, CLIP_L14):
        expected = model.get_image_features(pixel_values=pixels).pooler_output
    else:
        expected = model(pixel_values=pixels).last_hidden_state[:, 0]
    ours = load(name, folders[name]).image_features(images(), PYNATIVE)
    assert relative_error(ours, unit(expected)) < TOLERANCE
    assert np.abs(ours[0] - ours[1]).max() > 0.02  # the images are told apart


@pytest.mark.parametrize("name", [CLIP_B32, CLIP_L14])
def test_text_features(name: str, folders: dict[str, Path]) -> None:
    import torch

    texts = ["a dog in the jungle", "a cube shaped stuffed animal", " ".join(["word"] * 90)]
    ids = Tokenizer()(texts, 49407)
    model = reference_model(folders[name], name)
    expected = model.get_text_features(input_ids=torch.tensor(ids.astype(np.int64))).pooler_output
    ours = load(name, folders[name]).text_features(texts, PYNATIVE)
    assert relative_error(ours, unit(expected)) < TOLERANCE


def test_graph_mode_computes_the_same(folders: dict[str, Path]) -> None:
    graph = Backend("CPU", graph=True, dtype=ms.float32)
    encoder = load(DINOV2_B14, folders[DINOV2_B14])
    assert relative_error(encoder.image_features(images(), graph), encoder.image_features(images(), PYNATIVE)) < 1e-5
    clip = load(CLIP_B32, folders[CLIP_B32])
    texts = ["a dog in the jungle", "a wet toy"]
    assert relative_error(clip.text_features(texts, graph), clip.text_features(texts, PYNATIVE)) < 1e-5
