"""Captions of single images, from `name.txt` beside the image or from `metadata.jsonl` in its folder."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gm.data import templates
from gm.errors import UserError, shorten

log = logging.getLogger("gm")

METADATA = "metadata.jsonl"  # as in Hugging Face's image folders: {"file_name": "1.jpg", "text": "…"} on each line
TEXT_SUFFIXES = (".txt", ".caption")  # the default of OneTrainer, and that of kohya's sd-scripts

Captions = tuple[str, ...]  # of one image: alternatives, of which each step shows one


def caption_files(folder: Path, images: Sequence[Path]) -> list[Path]:
    """Return the caption files that belong to `images`."""
    files = _caption_files_by_name(folder)
    names = [METADATA, *(_text_file_name(files, image.name) for image in images)]
    return [files[name] for name in dict.fromkeys(names) if name in files]


def load_captions(
    data_path: str | Path,
    image_names: Sequence[str],
    placeholder_token: str,
    contains_placeholder: Callable[[str], bool],
    class_word: str | None = None,
) -> tuple[Captions, ...]:
    """Return the captions of each image in the folder, none where there are none.

    Each line of a text file, each string of a list in the metadata, and each metadata line of the same image is a
    caption of its own (as in OneTrainer, and in sd-scripts with `enable_wildcard`). A text file overrides the metadata.
    `{}` stands for `placeholder_token`; a caption in which `contains_placeholder` does not find it begins with it. With
    a `class_word` both are followed by it, as in templates.
    Raises UserError for a file that is not UTF-8 text, and for a line of metadata without an image and its text.
    """
    folder = Path(data_path)
    files = _caption_files_by_name(folder)
    metadata = _read_metadata(files[METADATA]) if METADATA in files else {}
    _warn_about_unused_metadata(folder / METADATA, metadata, image_names, files)
    captions: list[Captions] = []
    first = templates.fill("{}", placeholder_token, class_word)
    prefixed = 0
    for name in image_names:
        text_file = files.get(_text_file_name(files, name))
        # Not splitlines(), for which U+2028 and others end a line, too.
        texts = _read_text(text_file).split("\n") if text_file else metadata.get(name, [])
        filled = [
            templates.fill(" ".join(text.split()), placeholder_token, class_word) for text in texts if text.strip()
        ]
        prefixed += sum(not contains_placeholder(caption) for caption in filled)
        captions.append(tuple(each if contains_placeholder(each) else f"{first}, {each}" for each in filled))
    if prefixed:
        log.info("%d captions contain neither {} nor %s, which was put at their beginning", prefixed, first)
    several = sum(len(each) > 1 for each in captions)
    if several:
        log.info("%d images in %s have several captions, a line each; every step shows one of them", several, folder)
    return tuple(captions)


def _caption_files_by_name(folder: Path) -> dict[str, Path]:
    """Return the files that may hold captions: their names with the ending in lower case → path."""
    files = {}
    for path in sorted(folder.iterdir(), reverse=True):  # `1.txt` after `1.TXT`, and in its place
        if path.suffix.lower() in TEXT_SUFFIXES and path.is_file():
            files[f"{path.stem}{path.suffix.lower()}"] = path
        elif path.name.lower() == METADATA and path.is_file():
            files[METADATA] = path
    return files


def _text_file_name(files: dict[str, Path], image_name: str) -> str:
    """Return the key in `files` of the text file beside an image; "" if there is none."""
    names = (f"{Path(image_name).stem}{suffix}" for suffix in TEXT_SUFFIXES)
    return next((name for name in names if name in files), "")


def _warn_about_unused_metadata(
    path: Path, metadata: dict[str, list[str]], image_names: Sequence[str], files: dict[str, Path]
) -> None:
    unknown = ", ".join(sorted(set(metadata) - set(image_names)))
    if unknown:
        log.warning("%s has captions of images that do not exist: %s", path, unknown)
    overridden = ", ".join(name for name in image_names if metadata.get(name) and _text_file_name(files, name))
    if overridden:
        log.warning("%s: text files override the captions of %s", path, overridden)


def _read_metadata(path: Path) -> dict[str, list[str]]:
    """Return the captions of a metadata file by file name."""
    captions: dict[str, list[str]] = {}
    for number, line in enumerate(_read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            entry: Any = json.loads(line)
            name, text = entry["file_name"], entry["text"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(
                f'{path}, line {number} is not of the form {{"file_name": "1.jpg", "text": "…"}}; correct or remove it'
            ) from error
        if not isinstance(name, str):
            raise UserError(
                f"{path}, line {number}: file_name is {shorten(json.dumps(name), 60)}; write it as a string"
            )
        captions.setdefault(name, []).extend(_texts(text, f"{path}, line {number}"))
    return captions


def _texts(value: Any, place: str) -> list[str]:
    """Return the captions that the JSON `value` of a text holds; none for null and for NaN, which pandas writes."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return []
    texts = value if isinstance(value, list) else [value]
    for text in texts:
        if not isinstance(text, str):
            raise UserError(
                f"{place}: text is {shorten(json.dumps(value), 60)}; write a string, or a list of strings of which "
                "each step shows one"
            )
    return texts


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text; save it with that encoding") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
