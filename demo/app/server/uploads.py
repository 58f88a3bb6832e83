"""Uploaded images: checked by their content and stored under generated names."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from gm.data import image as image_io
from gm.errors import UserError
from gm.runtime import atomic_io

MAX_IMAGE_BYTES = 50 * 10**6
MAX_IMAGES = 200  # per upload
MAX_PIXELS = 64 * 10**6
_SUFFIXES = {  # by the first bytes of a file
    b"\xff\xd8\xff": ".jpg",
    b"\x89PNG\r\n\x1a\n": ".png",
    b"RIFF": ".webp",
    b"BM": ".bmp",
    b"GIF8": ".gif",
    b"II*\x00": ".tif",
    b"MM\x00*": ".tif",
}


def store_images(contents: Sequence[bytes], folder: Path) -> list[Path]:
    """Store images as `store_image` does and return their paths; duplicates are stored once.

    UserError, before any is stored, for none and for more than `MAX_IMAGES`.
    """
    if not contents:
        raise UserError("no image was uploaded; choose at least one")
    if len(contents) > MAX_IMAGES:
        raise UserError(f"{len(contents)} images were uploaded; upload at most {MAX_IMAGES}")
    return list(dict.fromkeys(store_image(content, folder) for content in contents))


def store_image(content: bytes, folder: Path) -> Path:
    """Store an image in `folder` under its hash; UserError if it is not an image, is damaged or too large."""
    check_size(content, MAX_IMAGE_BYTES, "the image")
    suffix = next((suffix for start, suffix in _SUFFIXES.items() if content.startswith(start)), None)
    if suffix is None:
        raise UserError("an uploaded file is not an image; upload JPEG, PNG, WebP, BMP, GIF or TIFF")
    path = store(content, folder, hash_of(content) + suffix)
    try:
        with image_io.open_image(path) as image:
            if image.width * image.height > MAX_PIXELS:
                size = f"{image.width}×{image.height}"
                raise UserError(f"an image has {size} pixels; upload at most {MAX_PIXELS // 10**6} million")
            image_io.to_rgb(image)
    except UserError as error:
        path.unlink()
        raise UserError(str(error).replace(str(path), "that was uploaded")) from error
    return path


def check_size(content: bytes, limit: int, subject: str) -> None:
    """Raise UserError for content that is empty or larger than `limit` bytes."""
    if len(content) > limit:
        raise UserError(f"{subject} has {len(content) / 1e6:.0f} MB; upload at most {limit / 1e6:.0f} MB")
    if not content:
        raise UserError(f"{subject} is empty; upload another")


def hash_of(*contents: bytes) -> str:
    """Return a file name for `contents`, without suffix: their hash."""
    digests = [hashlib.sha256(content) for content in contents]
    digest = digests[0] if len(digests) == 1 else hashlib.sha256(b"".join(each.digest() for each in digests))
    return digest.hexdigest()[:16]


def store(content: bytes, folder: Path, name: str) -> Path:
    """Write `content` to a file in `folder`, which is made if it is missing; return its path."""
    make_folder(folder)
    path = folder / name
    with atomic_io.atomic_write(path) as temporary:
        temporary.write_bytes(content)
    return path


def make_folder(folder: Path) -> None:
    """Make `folder`; UserError if that is not possible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror}") from error
