"""The training images of a browser in a folder: added, shown as training crops them, captioned and removed.

A file's name is the hash of its content; `.names.json` has the names on the user's machine. Masks and captions lie
beside their images under the names that training looks for. A run takes a copy, so that what the page changes later
does not change the run.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

import numpy as np
from PIL import Image

from demo.app.server import limits, uploads
from demo.app.server.uploads import Notify
from gm.data import bucketing, captions, image_folder, image_reader, masks
from gm.data.bucketing import Size
from gm.data.image import resize_and_crop
from gm.errors import UserError
from gm.runtime import atomic_io

NAMES = ".names.json"
_MASKED = 0.25  # brightness of what is not trained on
_MAX_NAME = 100  # characters of a file name that are kept


@dataclass(frozen=True)
class Framing:
    """How training crops images: to a square of `resolution` pixels, or to the bucket nearest to their aspect ratio."""

    resolution: int
    buckets: tuple[Size, ...] = ()
    center_crop: bool = True

    def size(self, original: Size) -> Size:
        """Return the size, (height, width), to which an image of the size `original` is cropped."""
        if self.buckets:
            return bucketing.select_bucket(original, self.buckets)
        return self.resolution, self.resolution


@dataclass(frozen=True)
class TrainingImage:
    """A stored image: its file, its name on the user's machine, its caption ("" if it has none) and its mask."""

    path: Path
    name: str
    caption: str
    mask: Path | None


@dataclass(frozen=True)
class Thumbnail:
    """A JPEG of what training sees of an image, darkened where the mask is black.

    original: (height, width) of the file; enlarged: training has to make it larger than it is
    """

    content: bytes
    original: Size
    enlarged: bool


def add(files: Sequence[tuple[str, bytes]], folder: Path, notify: Notify = lambda _: None) -> None:
    """Add uploaded images, masks and captions, names and contents, to `folder`, which is made if it is missing.

    A mask or a caption (`cat.txt` of `cat.jpg`) may also be that of an image that is there already. UserError, before
    anything is added, for a file that cannot be used, a caption without its image, and too many images.
    """
    named = [(PureWindowsPath(name).name[-_MAX_NAME:], content) for name, content in files]
    texts = {name: _text(name, content) for name, content in named if _is_caption(name)}
    image_files = [(name, content) for name, content in named if not _is_caption(name)]
    present = load(folder)
    image_files = _earlier_images_of(image_files, present) + image_files
    new = folder.with_name(f"{folder.name}.new-{secrets.token_hex(4)}")
    try:
        paths = uploads.store_training_images(image_files, new, notify) if image_files else []
        names = {uploads.hash_of(content): name for name, content in image_files if not masks.is_sidecar(Path(name))}
        names = {path.name: names.get(path.stem, path.name) for path in paths}
        all_names = {image.path.name: image.name for image in present} | names
        if len(all_names) > uploads.MAX_IMAGES:
            raise UserError(f"these would be {len(all_names)} images; at most {uploads.MAX_IMAGES} are possible")
        captions = _match_captions(texts, all_names)
        uploads.make_folder(folder)
        for path in new.iterdir() if new.is_dir() else ():
            if masks.is_mask(path):  # in place of one of another format
                for earlier in folder.glob(f"{masks.image_stem(path)}{masks.ENDING}.*"):
                    earlier.unlink()
            path.replace(folder / path.name)
        _write(folder / NAMES, json.dumps(all_names, indent=1))
        for file, text in captions.items():
            set_caption(folder / file, text)
    except OSError as error:
        raise UserError(f"cannot store an uploaded file: {error.strerror}; tell the owner of the machine") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


def load(folder: Path) -> list[TrainingImage]:
    """Return the images in `folder`, none if it does not exist, in the order of the user's names."""
    if not folder.is_dir():
        return []
    names = read_names(folder)
    paths = image_folder.image_files(folder)
    mask_files = masks.match(image_folder.sidecar_files(folder), paths)
    images = [
        TrainingImage(path, names.get(path.name, path.name), _caption(path), mask_files.get(path.stem))
        for path in paths
    ]
    return sorted(images, key=lambda image: (image.name, image.path.name))


def set_caption(image: Path, text: str) -> None:
    """Write the caption of an image; "" removes it, so that training takes templates. UserError if it is too long."""
    limits.check_text(text, "caption")
    path = image.with_suffix(".txt")
    if text.strip():
        _write(path, text.strip() + "\n")
    else:
        path.unlink(missing_ok=True)


def remove(image: TrainingImage) -> None:
    """Delete an image with its mask and caption."""
    for path in (image.path, image.mask, image.path.with_suffix(".txt")):
        if path:
            path.unlink(missing_ok=True)


def copy(folder: Path) -> Path:
    """Return a new folder beside `folder` with the same files, without a second copy of them on the disk."""
    target = folder.with_name(secrets.token_hex(8))
    uploads.make_folder(target)
    try:
        for path in folder.iterdir():
            try:
                os.link(path, target / path.name)  # files are replaced, never changed
            except OSError:  # a file system without links
                shutil.copyfile(path, target / path.name)
    except OSError as error:
        shutil.rmtree(target, ignore_errors=True)
        raise UserError(f"cannot copy the training images: {error.strerror}; tell the owner of the machine") from error
    return target


def read_names(folder: Path) -> dict[str, str]:
    """Return the names on the user's machine by the names of the stored files; none if the list is damaged."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        names = json.loads((folder / NAMES).read_text(encoding="utf-8"))
        if isinstance(names, dict):
            return {file: name for file, name in names.items() if isinstance(name, str)}
    return {}


def thumbnail(image: TrainingImage, framing: Framing, side: int) -> Thumbnail:
    """Return what training sees of an image, at most `side` pixels high and wide; UserError if it cannot be read."""
    try:
        modified = image.mask.stat().st_mtime_ns if image.mask else 0
        return _thumbnail(image.path, image.mask, modified, framing, side)
    except OSError as error:  # removed just now
        raise UserError(f"cannot read {image.name}: {error.strerror}; upload it again") from error
    except UserError as error:
        raise UserError(str(error).replace(str(image.path), image.name)) from error


@functools.lru_cache(maxsize=500)
def _thumbnail(path: Path, mask_path: Path | None, _modified: int, framing: Framing, side: int) -> Thumbnail:
    with uploads.decoding:
        image = image_reader.read_image(path)
        mask = masks.load_mask(mask_path, image)
        original = (image.rgb.height, image.rgb.width)
        height, width = framing.size(original)
        scale = side / max(height, width)
        small = (max(round(height * scale), 1), max(round(width * scale), 1))
        cropped = resize_and_crop(image.rgb, mask, path.name, small, framing.center_crop)
    pixels = (cropped.pixels.transpose(1, 2, 0) + 1) * 127.5
    if cropped.mask is not None:
        pixels = pixels * (_MASKED + (1 - _MASKED) * cropped.mask[..., None])
    content = io.BytesIO()
    Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8)).save(content, "JPEG", quality=85)
    ratios = height / original[0], width / original[1]
    return Thumbnail(content.getvalue(), original, max(ratios) > 1)


def _earlier_images_of(image_files: Sequence[tuple[str, bytes]], present: Sequence[TrainingImage]) -> list:
    """Return the images, names and contents, that are there already and whose masks are uploaded now."""
    uploaded = {Path(name).stem for name, _ in image_files}
    stems = {masks.image_stem(Path(name)) for name, _ in image_files if masks.is_mask(Path(name))} - uploaded
    return [(image.name, image.path.read_bytes()) for image in present if Path(image.name).stem in stems]


def _is_caption(name: str) -> bool:
    return Path(name).suffix.lower() in captions.TEXT_SUFFIXES


def _text(name: str, content: bytes) -> str:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not UTF-8 text; save it with that encoding") from error
    limits.check_text(text, f"caption {name}")
    return text


def _match_captions(texts: dict[str, str], names: dict[str, str]) -> dict[str, str]:
    """Return the captions by the name of the stored image; UserError for one without its image."""
    captions: dict[str, str] = {}
    for text_name, text in texts.items():
        files = [file for file, name in names.items() if Path(name).stem == Path(text_name).stem]
        if not files:
            raise UserError(
                f"{text_name} is by its name the caption of an image that is not here; upload both, or leave it out"
            )
        captions |= dict.fromkeys(files, text)
    return captions


def _caption(image: Path) -> str:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return image.with_suffix(".txt").read_text(encoding="utf-8").strip()
    return ""


def _write(path: Path, text: str) -> None:
    try:
        with atomic_io.atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot store {path.name}: {error.strerror}; tell the owner of the machine") from error
