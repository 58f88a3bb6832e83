"""Uploaded images: checked by their content and stored under generated names."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from gm.data import image_reader, masks
from gm.errors import UserError
from gm.runtime import atomic_io

MAX_IMAGE_BYTES = 50 * 10**6
MAX_IMAGES = 200  # per upload
MAX_PIXELS = 36 * 10**6  # of which decoding takes 25 bytes each
decoding = threading.Lock()  # one upload at a time, whatever the number of visitors
_SUFFIXES = {  # by the first bytes of a file
    b"\xff\xd8\xff": ".jpg",
    b"\x89PNG\r\n\x1a\n": ".png",
    b"RIFF": ".webp",
    b"BM": ".bmp",
    b"GIF8": ".gif",
    b"II*\x00": ".tif",
    b"MM\x00*": ".tif",
}

Notify = Callable[[str], object]  # takes what the visitor should know of an upload


def _ignore(note: str) -> None:
    """Take a note and do nothing."""


def store_images(contents: Sequence[bytes], folder: Path, notify: Notify = _ignore) -> list[Path]:
    """Store images as `store_image` does and return their paths; duplicates are stored once.

    UserError, before any is stored, for none and for more than `MAX_IMAGES`.
    """
    check_number(len(contents))
    return list(dict.fromkeys(store_image(content, folder, notify) for content in contents))


def store_training_images(files: Sequence[tuple[str, bytes]], folder: Path, notify: Notify = _ignore) -> list[Path]:
    """Store images, and their masks under the names that training looks for; return the images' paths.

    `files` are names, which distinguish masks from images, and contents. UserError as of `store_images`, and for a mask
    without its image.
    """
    images = [(Path(name), content) for name, content in files if not masks.is_sidecar(Path(name))]
    sidecars = [(Path(name), content) for name, content in files if masks.is_sidecar(Path(name))]
    mask_names = masks.match([name for name, _ in sidecars], [name for name, _ in images])
    for name, _ in sidecars:
        if name not in mask_names.values():
            kind = "the mask of one that was not uploaded" if masks.is_mask(name) else "OneTrainer's conditioning image"
            raise UserError(f"{name} is by its name not an image to train on, but {kind}; leave it out")
    check_number(len(images))
    mask_contents = dict(sidecars)
    stored: dict[Path, bytes | None] = {}
    for name, content in images:
        path = _store_named(name.name, content, folder, notify)
        mask = mask_contents[mask_names[name.stem]] if name.stem in mask_names else None
        if stored.setdefault(path, mask) != mask:
            raise UserError(f"{name} was uploaded twice, with different masks; upload it once")
    for path, mask in stored.items():
        if mask is not None:
            _store_image(mask, folder, f"{path.stem}{masks.ENDING}")
    return list(stored)


def _store_named(name: str, content: bytes, folder: Path, notify: Notify) -> Path:
    """Store an image as `store_image` does, with its `name` in messages."""
    try:
        return store_image(content, folder, lambda note: notify(f"{name}: {note}"))
    except UserError as error:
        raise UserError(f"{name}: {error}") from error


def store_image(content: bytes, folder: Path, notify: Notify = _ignore) -> Path:
    """Store an image in `folder` under its hash; UserError if it is not an image, is damaged or too large.

    What of it is not used is passed to `notify`.
    """
    path, notes = _store_image(content, folder)
    for note in notes:
        notify(f"an uploaded image {note}")
    return path


def check_number(number: int) -> None:
    """Raise UserError for no image, and for more than `MAX_IMAGES`."""
    if not number:
        raise UserError("no image was uploaded; choose at least one")
    if number > MAX_IMAGES:
        raise UserError(f"{number} images were uploaded; upload at most {MAX_IMAGES}")


def _store_image(content: bytes, folder: Path, stem: str = "") -> tuple[Path, tuple[str, ...]]:
    """Store an image under `stem`, by default its hash; return its path and what of it is not used."""
    check_size(content, MAX_IMAGE_BYTES, "the image")
    suffix = next((suffix for start, suffix in _SUFFIXES.items() if content.startswith(start)), None)
    if suffix is None:
        raise UserError("an uploaded file is not an image; upload JPEG, PNG, WebP, BMP, GIF or TIFF")
    path = store(content, folder, (stem or hash_of(content)) + suffix)
    try:
        with image_reader.open_image(path) as image:
            if image.width * image.height > MAX_PIXELS:
                size = f"{image.width}×{image.height}"
                raise UserError(f"an image has {size} pixels; upload at most {MAX_PIXELS // 10**6} million")
        with decoding:
            return path, image_reader.read_image(path).notes
    except UserError as error:
        path.unlink()
        text = str(error).replace(f"image {path}", "image that was uploaded").replace(str(path), "an uploaded image")
        raise UserError(text) from error


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
    """Write `content` to a file in `folder`, which is made if it is missing; return its path.

    Raises UserError if that is not possible, as for a full disk.
    """
    make_folder(folder)
    path = folder / name
    try:
        with atomic_io.atomic_write(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise UserError(f"cannot store an uploaded file: {error.strerror}; tell the owner of the machine") from error
    return path


def make_folder(folder: Path) -> None:
    """Make `folder`; UserError if that is not possible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror}") from error
