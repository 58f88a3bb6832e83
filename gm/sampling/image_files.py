"""PNG files, each with its generation parameters."""

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

from gm.config import paths
from gm.errors import UserError
from gm.runtime import atomic_io

PARAMETERS_KEY = "generation_parameters"  # PNG text that holds the generation parameters as JSON
_OLDER_KEY = "recipe"  # its name in images of version 0.1, some of whose options had other names
_RENAMED_OPTIONS = {"vae_tile": "vae_tile_size"}
A1111_KEY = "parameters"  # PNG text that AUTOMATIC1111, and programs that follow it, read


def make_grid(images: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Return uint8 images [H, W, 3] side by side in rows of `columns`; empty places are white."""
    height = max(image.shape[0] for image in images)
    width = max(image.shape[1] for image in images)
    rows = math.ceil(len(images) / columns)
    grid = np.full((rows * height, columns * width, 3), 255, np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * height, index % columns * width
        grid[top : top + image.shape[0], left : left + image.shape[1]] = image
    return grid


def write(image: np.ndarray, parameters: dict[str, Any], path: Path) -> None:
    """Write a PNG to `path`, replacing it if it exists and making its folder; UserError if that is not possible."""
    try:
        path.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {path.parent}: {error.strerror}") from error
    with atomic_io.atomic_write(path) as temporary:
        temporary.write_bytes(_png(image, parameters))


def save(image: np.ndarray, parameters: dict[str, Any], folder: Path, stem: str, infotext: str = "") -> Path:
    """Write a PNG in `folder` under the next free name, `stem`_00000.png and up, and return its path.

    `infotext` are the parameters once more, as AUTOMATIC1111 writes them.
    """
    content = _png(image, parameters, infotext)
    matches = (re.fullmatch(rf"{re.escape(stem)}_(\d+)\.png", path.name) for path in folder.iterdir())
    number = max((int(match[1]) for match in matches if match), default=-1) + 1
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
    """Return the generation parameters in a PNG that `save` wrote; UserError if it holds none, or is not an image."""
    paths.check_regular(path)
    try:
        with Image.open(path) as image:
            texts = getattr(image, "text", {})
        content = texts.get(PARAMETERS_KEY, texts.get(_OLDER_KEY))
        parameters = None if content is None else json.loads(content)
    except FileNotFoundError as error:
        raise UserError(f"{path} is not a file; give an image that this toolkit generated") from error
    except Exception as error:  # a damaged file makes Pillow raise almost anything
        raise UserError(
            f"{path} is not a readable image, or its generation parameters are damaged; give another"
        ) from error
    if not isinstance(parameters, dict):
        raise UserError(f"{path} holds no generation parameters; only images that this toolkit generated do")
    return parameters if PARAMETERS_KEY in texts else _upgrade(parameters)


def _upgrade(parameters: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters of version 0.1 under today's names; the model, whose fields are others, is left out."""
    return {_RENAMED_OPTIONS.get(name, name): value for name, value in parameters.items() if name != "model"}


def _png(image: np.ndarray, parameters: dict[str, Any], infotext: str = "") -> bytes:
    text = PngImagePlugin.PngInfo()
    text.add_itxt(PARAMETERS_KEY, json.dumps(parameters, ensure_ascii=False))
    if infotext:
        text.add_text(A1111_KEY, infotext)
    content = io.BytesIO()
    Image.fromarray(image).save(content, "PNG", pnginfo=text)
    return content.getvalue()
