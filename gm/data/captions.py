"""What single images show, said beside them: `name.txt`, or lines of `metadata.jsonl`."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gm.data import templates
from gm.errors import UserError

logger = logging.getLogger("gm")

METADATA = "metadata.jsonl"  # as Hugging Face's image folders have it: {"file_name": "1.jpg", "text": "…"} a line


def files(folder: Path, images: Sequence[Path]) -> list[Path]:
    """Return the caption files that belong to `images`."""
    candidates = [folder / METADATA, *(image.with_suffix(".txt") for image in images)]
    return [path for path in candidates if path.is_file()]


def read(
    data_path: str | Path, names: Sequence[str], word: str, holds: Callable[[str], bool]
) -> tuple[str | None, ...]:
    """Return the caption of each image in the folder, None where there is none; a text file beats the metadata.

    `{}` stands for `word`; one that does not hold the word even so, as `holds` tells, gets it in front. Raises
    UserError for a file that is not UTF-8 text, and for a line of metadata that does not name an image and its text.
    """
    folder = Path(data_path)
    said = _metadata(folder / METADATA) if (folder / METADATA).is_file() else {}
    strangers = ", ".join(sorted(set(said) - set(names)))
    if strangers:
        logger.warning("%s captions images that are not there: %s", folder / METADATA, strangers)
    captions, without = [], 0
    for name in names:
        beside = (folder / name).with_suffix(".txt")
        text = " ".join((_text(beside) if beside.is_file() else said.get(name, "")).split())
        caption = templates.fill(text, word)
        if caption and not holds(caption):
            caption, without = f"{word}, {caption}", without + 1
        captions.append(caption or None)
    if without:
        logger.info("%d captions hold neither {} nor %s, which now stands in front of them", without, word)
    return tuple(captions)


def _metadata(path: Path) -> dict[str, str]:
    said = {}
    for number, line in enumerate(_text(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry: Any = json.loads(line)
            said[str(entry["file_name"])] = str(entry["text"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f'{path}, line {number} is not of the form {{"file_name": "1.jpg", "text": "…"}}; mend or remove it'
            ) from error
    return said


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text; save it with that encoding") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
