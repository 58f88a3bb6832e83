"""Captions of single images, from `name.txt` beside the image or from `metadata.jsonl` in its folder."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gm.data import templates
from gm.errors import UserError

log = logging.getLogger("gm")

METADATA = "metadata.jsonl"  # as in Hugging Face's image folders: {"file_name": "1.jpg", "text": "…"} on each line


def caption_files(folder: Path, images: Sequence[Path]) -> list[Path]:
    """Return the caption files that belong to `images`."""
    candidates = [folder / METADATA, *(image.with_suffix(".txt") for image in images)]
    return [path for path in candidates if path.is_file()]


def load_captions(
    data_path: str | Path,
    image_names: Sequence[str],
    placeholder_token: str,
    contains_placeholder: Callable[[str], bool],
) -> tuple[str | None, ...]:
    """Return the caption of each image in the folder, None where there is none; a text file overrides the metadata.

    `{}` stands for `placeholder_token`; a caption in which `contains_placeholder` does not find it begins with it.
    Raises UserError for a file that is not UTF-8 text, and for a line of metadata without an image and its text.
    """
    folder = Path(data_path)
    metadata = _read_metadata(folder / METADATA) if (folder / METADATA).is_file() else {}
    unknown = ", ".join(sorted(set(metadata) - set(image_names)))
    if unknown:
        log.warning("%s has captions of images that do not exist: %s", folder / METADATA, unknown)
    captions: list[str | None] = []
    prefixed = 0
    for name in image_names:
        text_file = (folder / name).with_suffix(".txt")
        text = _read_text(text_file) if text_file.is_file() else metadata.get(name, "")
        caption = templates.fill(" ".join(text.split()), placeholder_token)
        if caption and not contains_placeholder(caption):
            caption = f"{placeholder_token}, {caption}"
            prefixed += 1
        captions.append(caption or None)
    if prefixed:
        log.info("%d captions contain neither {} nor %s, which was put at their beginning", prefixed, placeholder_token)
    return tuple(captions)


def _read_metadata(path: Path) -> dict[str, str]:
    """Return the captions of a metadata file by file name."""
    captions = {}
    for number, line in enumerate(_read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry: Any = json.loads(line)
            captions[str(entry["file_name"])] = str(entry["text"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f'{path}, line {number} is not of the form {{"file_name": "1.jpg", "text": "…"}}; correct or remove it'
            ) from error
    return captions


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text; save it with that encoding") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
