"""Files that people send: checked by what they hold, and stored under names of our own."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

from gm.data import image as pictures_of
from gm.embeddings import io as embedding_io
from gm.embeddings.embedding import safe_filename
from gm.errors import UserError
from gm.runtime import atomic_io

PICTURE_BYTES, CONCEPT_BYTES = 50 * 10**6, 20 * 10**6
PICTURES = 200  # at once
PIXELS = 64 * 10**6
# Endings by what files begin with.
_PICTURES = {b"\xff\xd8\xff": ".jpg", b"\x89PNG\r\n\x1a\n": ".png", b"RIFF": ".webp", b"BM": ".bmp", b"GIF8": ".gif"}
_PICTURES |= {b"II*\x00": ".tif", b"MM\x00*": ".tif"}


def pictures(contents: Sequence[bytes], folder: Path) -> list[Path]:
    """Store pictures as `picture` does, and return their paths; the same one sent twice is one.

    UserError, before any is stored, for none and for more than `PICTURES`.
    """
    if not contents:
        raise UserError("no picture was sent; choose some")
    if len(contents) > PICTURES:
        raise UserError(f"{len(contents)} pictures were sent; send {PICTURES} at most")
    return list(dict.fromkeys(picture(content, folder) for content in contents))


def picture(content: bytes, folder: Path) -> Path:
    """Store a picture in `folder` under a hash of it; UserError for what is none, is damaged, or is too large."""
    _check_size(content, PICTURE_BYTES, "the picture")
    ending = next((ending for start, ending in _PICTURES.items() if content.startswith(start)), None)
    if ending is None:
        raise UserError("a file that was sent is no picture of a known kind; send JPEG, PNG, WebP, BMP, GIF or TIFF")
    path = _store(content, folder, ending)
    try:
        with pictures_of.open_image(path) as image:
            if image.width * image.height > PIXELS:
                size = f"{image.width}×{image.height}"
                raise UserError(f"a picture has {size} pixels; send one of {PIXELS // 10**6} million at most")
            pictures_of.to_rgb(image)
    except UserError as error:
        path.unlink()
        raise UserError(str(error).replace(str(path), "that was sent")) from error
    return path


def concept(content: bytes, name: str, folder: Path) -> Path:
    """Store a learned file of any format in `folder` and return its path; UserError if it cannot be used.

    `name` is used for nothing but the word, where the file does not say its own.
    """
    _check_size(content, CONCEPT_BYTES, "the learned file")
    path = _store(content, folder, ".safetensors")  # files are told by what they hold, not by their ending
    try:
        found = embedding_io.load_all(path)
    except UserError as error:
        path.unlink()
        raise UserError(str(error).replace(str(path), "the file")) from error
    if len(found) == 1 and path.stem in found[0].placeholder:
        word = safe_filename("-".join(Path(name).stem.split())) or "concept"
        path.unlink()
        path = path.with_suffix(".ckpt")
        embedding_io.save(dataclasses.replace(found[0], placeholder=f"<{word}>"), path)
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
