"""Uploaded images: accepted content, generated names, and rejection of everything else."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from demo.app.server import uploads
from gm.errors import UserError


def image_bytes(kind: str = "PNG", size: tuple[int, int] = (6, 5), color: str = "red") -> bytes:
    content = io.BytesIO()
    Image.new("RGB", size, color).save(content, kind)
    return content.getvalue()


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
