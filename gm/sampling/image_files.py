"""Images on disk, each with the recipe it was made by."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from gm.errors import UserError
from gm.runtime import atomic_io

PARAMETERS_KEY = "recipe"  # of the PNG text that holds the recipe as JSON
WEBUI_KEY = "parameters"  # of the one that AUTOMATIC1111 and the programs that follow it read


def make_grid(images: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Lay uint8 images [H, W, 3] out in rows of `columns`; what they leave of the sheet is white."""
    height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    rows = math.ceil(len(images) / columns)
    sheet = np.full((rows * height, columns * width, 3), 255, np.uint8)
    for place, image in enumerate(images):
        top, left = place // columns * height, place % columns * width
        sheet[top : top + image.shape[0], left : left + image.shape[1]] = image
    return sheet


def write(image: np.ndarray, read_parameters: dict[str, Any], path: Path) -> None:
    """Write a PNG to `path`, making its folder and replacing what is there; UserError if that is not possible."""
    try:
        path.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {path.parent}: {error.strerror}") from error
    with atomic_io.atomic_write(path) as temporary:
        temporary.write_bytes(_png(image, read_parameters))


def save(image: np.ndarray, read_parameters: dict[str, Any], folder: Path, stem: str, webui: str = "") -> Path:
    """Write a PNG under a name in `folder` that no file has yet, `stem`_00000.png and up; return its path.

    `webui` is the recipe once more, as AUTOMATIC1111 writes it.
    """
    content = _png(image, read_parameters, webui)
    numbers = [
        int(m[1]) for m in (re.fullmatch(rf"{re.escape(stem)}_(\d+)\.png", p.name) for p in folder.iterdir()) if m
    ]
    number = max(numbers, default=-1) + 1
    while True:
        path = folder / f"{stem}_{number:05d}.png"
        try:
            with path.open("xb") as file:  # fails, rather than overwrites, if another process was faster
                file.write(content)
            return path
        except FileExistsError:
            number += 1
        except OSError as error:
            path.unlink(missing_ok=True)
            raise UserError(
                f"cannot write {path}: {error.strerror}; free some space or choose another folder"
            ) from error


def read_parameters(path: str | Path) -> dict[str, Any]:
    """Return the recipe kept in a PNG that `save` wrote; UserError if there is none, or no image."""
    try:
        with Image.open(path) as image:
            text = getattr(image, "text", {}).get(PARAMETERS_KEY)
        found = None if text is None else json.loads(text)
    except FileNotFoundError as error:
        raise UserError(f"there is not a file {path}; give an image made by this toolkit") from error
    except (OSError, ValueError, SyntaxError) as error:  # Pillow calls a broken PNG a SyntaxError
        raise UserError(f"{path} is no image that can be read, or its recipe is damaged; give another") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no recipe; only images made by this toolkit carry one")
    return found


def _png(image: np.ndarray, read_parameters: dict[str, Any], webui: str = "") -> bytes:
    text = PngImagePlugin.PngInfo()
    text.add_itxt(PARAMETERS_KEY, json.dumps(read_parameters, ensure_ascii=False))
    if webui:
        text.add_text(WEBUI_KEY, webui)
    content = io.BytesIO()
    Image.fromarray(image).save(content, "PNG", pnginfo=text)
    return content.getvalue()
