"""Uploads: accepted content, generated names, and rejection of everything else."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save as safetensors

from demo.app.server import uploads
from gm.embeddings import io as embedding_io
from gm.embeddings.embedding import Embedding
from gm.errors import UserError


def image_bytes(kind: str = "PNG", size: tuple[int, int] = (6, 5), color: str = "red") -> bytes:
    content = io.BytesIO()
    Image.new("RGB", size, color).save(content, kind)
    return content.getvalue()


def vectors() -> dict[str, np.ndarray]:
    return {"clip_l": np.ones((2, 4), np.float32), "clip_g": np.full((2, 6), 2.0, np.float32)}


@pytest.mark.parametrize(
    ("kind", "suffix"),
    [("PNG", ".png"), ("JPEG", ".jpg"), ("WEBP", ".webp"), ("BMP", ".bmp"), ("GIF", ".gif"), ("TIFF", ".tif")],
)
def test_images_are_stored_unchanged_under_generated_names(tmp_path: Path, kind: str, suffix: str) -> None:
    path = uploads.store_image(image_bytes(kind), tmp_path / "in")
    assert path.parent == tmp_path / "in"
    assert path.suffix == suffix
    assert set(path.stem) <= set("0123456789abcdef")
    assert path.read_bytes() == image_bytes(kind)
    assert uploads.store_image(image_bytes(kind), tmp_path / "in") == path


def test_rejected_images_leave_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "MAX_PIXELS", 100)
    monkeypatch.setattr(uploads, "MAX_IMAGE_BYTES", 5000)
    for content, message in (
        (b"", "the image is empty"),
        (b"<svg onload='x'/>", "is not an image"),
        (b"MZ" + image_bytes(), "is not an image"),
        (image_bytes()[:40], "cannot read the image"),
        (image_bytes(size=(20, 20)), "an image has 20×20 pixels; upload at most 0 million"),
        (b"\xff\xd8\xff" + b"x" * 5000, "the image has 0 MB"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            uploads.store_image(content, tmp_path)
        assert str(tmp_path) not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_several_images_are_limited_and_stored_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = [image_bytes(color="red"), image_bytes(color="blue"), image_bytes(color="red")]
    assert len(uploads.store_images(contents, tmp_path)) == 2
    with pytest.raises(UserError, match="no image was uploaded"):
        uploads.store_images([], tmp_path)
    monkeypatch.setattr(uploads, "MAX_IMAGES", 2)
    with pytest.raises(UserError, match="3 images were uploaded; upload at most 2"):
        uploads.store_images(contents, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_embedding_without_a_placeholder_token_takes_the_file_name(tmp_path: Path) -> None:
    path = uploads.store_embedding(safetensors(vectors()), "../../my cat!.safetensors", tmp_path)
    (embedding,) = embedding_io.load_all(path)
    assert embedding.placeholder_token == "<my-cat>"
    assert np.array_equal(embedding.vectors["clip_g"], vectors()["clip_g"])
    assert path.parent == tmp_path
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_embedding_with_a_placeholder_token_keeps_it(tmp_path: Path) -> None:
    embedding_io.save(Embedding("<toy>", vectors()), tmp_path / "mine.ckpt")
    path = uploads.store_embedding((tmp_path / "mine.ckpt").read_bytes(), "other.ckpt", tmp_path / "in")
    assert embedding_io.load(path).placeholder_token == "<toy>"
    assert path.name != "other.ckpt"


def test_rejected_embeddings_leave_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for content in (b"x", image_bytes(), safetensors({"emb_params": vectors()["clip_l"]})):
        with pytest.raises(UserError) as caught:
            uploads.store_embedding(content, "a.safetensors", tmp_path)
        assert str(tmp_path) not in str(caught.value)
    monkeypatch.setattr(uploads, "MAX_EMBEDDING_BYTES", 10)
    with pytest.raises(UserError, match="the embedding file has 0 MB; upload at most 0 MB"):
        uploads.store_embedding(safetensors(vectors()), "a", tmp_path)
    assert list(tmp_path.iterdir()) == []
