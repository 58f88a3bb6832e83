"""Uploaded images: accepted content, generated names, and rejection of everything else."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from demo.app.server import uploads
from gm.data import image_folder
from gm.errors import UserError


def image_bytes(kind: str = "PNG", size: tuple[int, int] = (6, 5), color: str = "red") -> bytes:
    content = io.BytesIO()
    Image.new("RGB", size, color).save(content, kind)
    return content.getvalue()


def transparent_bytes() -> bytes:
    content = io.BytesIO()
    Image.new("RGBA", (6, 5)).save(content, "PNG")
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
        (transparent_bytes(), "^an uploaded image is fully transparent, so that nothing of it is seen"),
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


def mask_bytes() -> bytes:
    """A mask of the images above, white in its left half."""
    content = io.BytesIO()
    mask = np.zeros((5, 6), np.uint8)
    mask[:, :3] = 255
    Image.fromarray(mask).save(content, "PNG")
    return content.getvalue()


@pytest.mark.parametrize("name", ["red.mask.png", "red-masklabel.PNG"])
def test_masks_are_uploaded_with_their_images(tmp_path: Path, name: str) -> None:
    files = [("red.jpg", image_bytes()), (name, mask_bytes()), ("blue.png", image_bytes(color="blue"))]
    paths = uploads.store_training_images(files, tmp_path)
    assert len(paths) == 2
    masks = {image.name: image.mask for image in image_folder.load_images(tmp_path, 4)}
    assert sorted(masks) == sorted(path.name for path in paths)
    mask = masks[paths[0].name]
    assert mask is not None
    assert mask[:, 0].min() == 1
    assert mask[:, -1].max() == 0
    assert masks[paths[1].name] is None


def test_uploaded_masks_are_never_images(tmp_path: Path) -> None:
    red, mask = image_bytes(), mask_bytes()
    for files, message in (
        ([("a.png", red), ("b.mask.png", mask)], "b.mask.png is by its name not an image to train on, but the mask"),
        ([("a.mask.png", mask)], "a.mask.png is by its name not an image"),
        ([("a.png", red), ("a-condlabel.png", mask)], "a-condlabel.png is .* but OneTrainer's conditioning image"),
        ([("a.png", red), ("a.mask.png", mask), ("a-masklabel.png", red)], "are masks of the same image; remove one"),
        ([("a.png", red), ("a.mask.png", mask), ("b.png", red)], "b.png was uploaded twice, with different masks"),
    ):
        with pytest.raises(UserError, match=message):
            uploads.store_training_images(files, tmp_path)
    with pytest.raises(UserError, match="no image was uploaded"):
        uploads.store_training_images([], tmp_path)


def test_unused_parts_of_an_upload_are_told(tmp_path: Path) -> None:
    content = io.BytesIO()
    Image.new("RGB", (6, 5), "red").save(content, "GIF", save_all=True, append_images=[Image.new("RGB", (6, 5))])
    notes: list[str] = []
    uploads.store_images([content.getvalue(), image_bytes()], tmp_path, notes.append)
    assert notes == ["an uploaded image has 2 frames; only the first is used"]


def test_large_images_are_refused_before_they_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = io.BytesIO()
    Image.new("1", (8000, 8000)).save(content, "PNG")  # some kilobytes, which decode to more than a gigabyte
    assert len(content.getvalue()) < 100_000
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda *_: pytest.fail("the image was decoded"))
    with pytest.raises(UserError, match="an image has 8000×8000 pixels; upload at most 36 million"):
        uploads.store_image(content.getvalue(), tmp_path)


@pytest.mark.parametrize(("number", "message"), [(errno.ENOSPC, "the disk is full"), (errno.EIO, "Input/output error")])
def test_a_disk_that_takes_no_upload_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, message: str
) -> None:
    def fail(path: Path, content: bytes) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(UserError, match=message) as caught:
        uploads.store(b"x", tmp_path, "a.png")
    assert len(str(caught.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
