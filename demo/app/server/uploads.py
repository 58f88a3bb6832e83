"""Files that people send: checked by what they hold, and stored under names of our own."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

from gm.data import image as images_of
from gm.embeddings import io as embedding_io
from gm.embeddings.embedding import safe_filename
from gm.errors import UserError
from gm.runtime import atomic_io

IMAGE_BYTES, CONCEPT_BYTES = 50 * 10**6, 20 * 10**6
IMAGES = 200  # at once
PIXELS = 64 * 10**6
# Endings by what files begin with.
_IMAGES = {b"\xff\xd8\xff": ".jpg", b"\x89PNG\r\n\x1a\n": ".png", b"RIFF": ".webp", b"BM": ".bmp", b"GIF8": ".gif"}
_IMAGES |= {b"II*\x00": ".tif", b"MM\x00*": ".tif"}


def images(contents: Sequence[bytes], folder: Path) -> list[Path]:
    """Store images as `image` does, and return their paths; the same one sent twice is one.

    UserError, before any is stored, for none and for more than `IMAGES`.
    """
    if not contents:
        raise UserError("no image was sent; choose some")
    if len(contents) > IMAGES:
        raise UserError(f"{len(contents)} images were sent; send {IMAGES} at most")
    return list(dict.fromkeys(image(content, folder) for content in contents))


def image(content: bytes, folder: Path) -> Path:
    """Store an image in `folder` under a hash of it; UserError for what is none, is damaged, or is too large."""
    _check_size(content, IMAGE_BYTES, "the image")
    ending = next((ending for start, ending in _IMAGES.items() if content.startswith(start)), None)
    if ending is None:
        raise UserError("a file that was sent is no image of a known kind; send JPEG, PNG, WebP, BMP, GIF or TIFF")
    path = _store(content, folder, ending)
    try:
        with images_of.open_image(path) as image:
            if image.width * image.height > PIXELS:
                size = f"{image.width}×{image.height}"
                raise UserError(f"an image has {size} pixels; send one of {PIXELS // 10**6} million at most")
            images_of.to_rgb(image)
    except UserError as error:
        path.unlink()
        raise UserError(str(error).replace(str(path), "that was sent")) from error
    return path


def concept(content: bytes, name: str, folder: Path) -> Path:
    """Store an embedding file of any format in `folder` and return its path; UserError if it cannot be used.

    `name` is used for nothing but the word, where the file does not say its own.
    """
    _check_size(content, CONCEPT_BYTES, "the embedding file")
    path = _store(content, folder, ".safetensors")  # files are told by what they hold, not by their ending
    try:
        found = embedding_io.load_all(path)
    except UserError as error:
        path.unlink()
        raise UserError(str(error).replace(str(path), "the file")) from error
    if len(found) == 1 and path.stem in found[0].placeholder_token:
        word = safe_filename("-".join(Path(name).stem.split())) or "concept"
        path.unlink()
        path = path.with_suffix(".ckpt")
        embedding_io.save(dataclasses.replace(found[0], placeholder_token=f"<{word}>"), path)
    return path


def _check_size(content: bytes, most: int, what: str) -> None:
    if len(content) > most:
        raise UserError(f"{what} has {len(content) / 1e6:.0f} MB; send one of {most / 1e6:.0f} MB at most")
    if not content:
        raise UserError(f"{what} is empty; send another")


def _store(content: bytes, folder: Path, ending: str) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror}") from error
    path = folder / f"{hashlib.sha256(content).hexdigest()[:16]}{ending}"
    with atomic_io.atomic_write(path) as temporary:
        temporary.write_bytes(content)
    return path
