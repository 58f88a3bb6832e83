"""gm/embeddings/a1111_images.py: embeddings in the text and in the pixels of images."""

from __future__ import annotations

import base64
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from gm.embeddings import io as embedding_io
from gm.errors import UserError
from tests.checkpoints.files import mutations, replace_file
from tests.embeddings.samples import assert_same_vectors

VECTORS = np.random.default_rng(0).standard_normal((2, 768)).astype(np.float32)
DATA = {
    "string_to_token": {"*": 265},
    "string_to_param": {"*": {"TORCHTENSOR": VECTORS.tolist()}},
    "name": "my-style",
    "step": 499,
    "sd_checkpoint": None,
    "sd_checkpoint_name": "v1-5",
}


def save_text(path: Path, data: Any = DATA, text: bytes | None = None) -> Path:
    """Write a PNG with an embedding in its text."""
    info = PngInfo()
    info.add_text("sd-ti-embedding", text or base64.b64encode(json.dumps(data).encode()))
    Image.new("RGB", (8, 8), (200, 100, 50)).save(path, pnginfo=info)
    return path


def pixels(data: Any = DATA, height: int = 64, mode: str = "RGB", compressed: bytes | None = None) -> Image.Image:
    """Return an image with an embedding in its pixels: bright, but for the columns that separate the three parts."""
    content = np.frombuffer(compressed or zlib.compress(json.dumps(data).encode(), 9), np.uint8)
    width = -(-len(content) // (height * 3))
    content = np.resize(content, (height, width, 3))
    state, mask = 0, []
    for _ in range(content.size):
        state = (1664525 * state + 1013904223) % 2**32
        mask.append(state % 255 & 0x0F)
    blocks = [0xA0 | half ^ np.array(mask, np.uint8).reshape(half.shape) for half in (content & 0x0F, content >> 4)]
    column = np.zeros((height, 1, 3), np.uint8)
    middle = np.full((height, 32, 3), 0x91, np.uint8)
    return Image.fromarray(np.concatenate([blocks[0], column, middle, column, blocks[1]], axis=1)).convert(mode)


@pytest.mark.parametrize("kind", ["text", "pixels.png", "pixels.webp", "with alpha", "in black"])
def test_an_embedding_in_an_image_is_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"shared.{'webp' if 'webp' in kind else 'png'}"
    if kind == "text":
        save_text(path)
    elif kind == "in black":
        image = pixels()
        frame = Image.new("RGB", (image.width + 10, image.height + 8))
        frame.paste(image, (3, 4))
        frame.save(path)
    else:
        pixels(mode="RGBA" if kind == "with alpha" else "RGB").save(path, lossless=True)
    file = embedding_io.read_file(path)
    assert (file.format, list(file.vectors)) == ("a1111", ["my-style"])
    assert_same_vectors(file.vectors["my-style"], {"clip_l": VECTORS})
    assert file.other_metadata("my-style") == {"step": 499, "sd_checkpoint_name": "v1-5"}
    with pytest.raises(UserError, match=r"lacks the vectors of OpenCLIP bigG.*probably Stable Diffusion 1"):
        embedding_io.load(path)
    embedding_io.write_file(file, tmp_path / "a.pt", "a1111")
    assert_same_vectors(embedding_io.read_file(tmp_path / "a.pt").vectors["my-style"], {"clip_l": VECTORS})


def test_an_embedding_of_sdxl_in_an_image_is_loaded(tmp_path: Path) -> None:
    tensors = {"clip_l": VECTORS, "clip_g": np.ones((2, 1280), np.float32)}
    data = {key: {"TORCHTENSOR": array.tolist()} for key, array in tensors.items()}
    pixels(data).save(tmp_path / "a.png")
    assert_same_vectors(embedding_io.load(tmp_path / "a.png").vectors, tensors)


def test_an_image_without_an_embedding_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    for image in (Image.new("RGB", (64, 64), "grey"), Image.new("RGB", (64, 64)), Image.fromarray(stripes)):
        image.save(path)
        with pytest.raises(UserError, match=r"a\.png is an image without an embedding; give the embedding file"):
            embedding_io.load(path)
    for suffix, options in (("jpg", {}), ("webp", {"quality": 70})):
        pixels().save(tmp_path / f"a.{suffix}", **options)
        with pytest.raises(UserError, match="without an embedding; only PNG and lossless WebP can hold one"):
            embedding_io.load(tmp_path / f"a.{suffix}")


@pytest.mark.parametrize(
    "data",
    [
        [1],
        {},
        {"string_to_param": {"*": {"TORCHTENSOR": "text"}}},
        {"string_to_param": {"*": {"TORCHTENSOR": [[1, 2], [3]]}}},
        {"string_to_param": {"*": {"TORCHTENSOR": [[[1.0]]]}}},
        {"string_to_param": {"*": {"TORCHTENSOR": {}}}},
        {"string_to_param": {"*": [1.0]}},
        {"string_to_param": 3},
    ],
)
def test_anything_else_in_place_of_an_embedding_is_refused(tmp_path: Path, data: Any) -> None:
    with pytest.raises(UserError) as caught:
        embedding_io.read_file(save_text(tmp_path / "a.png", data))
    assert len(str(caught.value).splitlines()) == 1


def test_damaged_images_are_refused_in_one_line(tmp_path: Path) -> None:
    bomb = zlib.compress(b"[" * 40_000_000, 9)
    contents = [save_text(tmp_path / "a.png", text=text).read_bytes() for text in (b"%%%", b"e30", b"[" * 10_000)]
    for image in (pixels(compressed=bomb), pixels(compressed=zlib.compress(b"[" * 100_000))):
        image.save(tmp_path / "a.png")
        contents.append((tmp_path / "a.png").read_bytes())
    for content in (*contents, contents[0][:40]):
        replace_file(tmp_path / "a.png", content)
        with pytest.raises(UserError, match=r"a\.png is an image ") as caught:
            embedding_io.read_file(tmp_path / "a.png")
        assert len(str(caught.value).splitlines()) == 1


def test_mutated_images_are_read_or_refused(tmp_path: Path) -> None:
    pixels().save(tmp_path / "b.png")
    refusals = []
    for path in (save_text(tmp_path / "a.png"), tmp_path / "b.png"):
        for changed in mutations(path.read_bytes(), 150, seed=1):
            replace_file(path, changed)
            try:
                embedding_io.read_file(path)
            except UserError as error:
                refusals.append(str(error))
    assert len(refusals) > 50
    assert all(len(text.splitlines()) == 1 for text in refusals)


def test_a_large_image_is_refused_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = PngInfo()
    info.add_text("sd-ti-embedding", base64.b64encode(json.dumps(DATA).encode()))
    Image.new("1", (12_000, 10_000)).save(tmp_path / "a.png", pnginfo=info)  # some kilobytes
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("the image was decoded"))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda *_: pytest.fail("the image was decoded"))
    with pytest.raises(UserError, match="12000×10000 pixels, more than one with an embedding"):
        embedding_io.load_all(tmp_path / "a.png")
