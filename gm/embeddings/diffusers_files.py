"""Files that diffusers writes for one embedding: one per text encoder, and the placeholder token beside them.

Training writes `learned_embeds-steps-500.safetensors` and `learned_embeds_2-steps-500.safetensors`, at its end the same
names without a step. The Hub's sd-concepts-library adds `token_identifier.txt`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gm.embeddings import cog_files
from gm.embeddings.encoders import ENCODERS, EncoderVectors
from gm.errors import UserError, shorten

IDENTIFIER = "token_identifier.txt"
_MAX_IDENTIFIER = 1000  # characters
_ENCODER_SUFFIXES = ("", "_2")  # of the file of each text encoder
_FILE_NAME = re.compile(r"(learned_embeds)(_2)?((?:-steps-\d+)?\.(?:safetensors|bin))")


def find_files(path: Path) -> list[Path]:
    """Return the files that belong together: of a folder the last ones, of one of the files all, else `path` alone."""
    if path.is_dir():
        names = [(_step(p), p) for p in path.iterdir() if (m := _FILE_NAME.fullmatch(p.name)) and not m[2]]
        if not names and (path / cog_files.EMBEDDINGS).is_file():
            return [path / cog_files.EMBEDDINGS]
        if not names:
            raise UserError(f"{path} is a folder without learned_embeds.safetensors; give an embedding file")
        path = max(names)[1]
    match = _FILE_NAME.fullmatch(path.name)
    if match is None:
        return [path]
    files = [path.with_name(f"{match[1]}{suffix}{match[3]}") for suffix in _ENCODER_SUFFIXES]
    return [file for file in files if file.exists()] or [path]


def target_paths(path: Path, count: int) -> list[Path]:
    """Return the paths of `count` files, one per text encoder, of which the first is `path`."""
    match = _FILE_NAME.fullmatch(path.name)
    stem, rest = (match[1], match[3]) if match else (path.stem, path.suffix)
    return [path, *(path.with_name(f"{stem}{suffix}{rest}") for suffix in _ENCODER_SUFFIXES[1:])][:count]


def read_identifier(path: Path) -> str:
    """Return the placeholder token in `token_identifier.txt` beside a file of diffusers, "" if there is none."""
    identifier = path.with_name(IDENTIFIER)
    if not _FILE_NAME.fullmatch(path.name) or not identifier.is_file():
        return ""
    try:
        with identifier.open(encoding="utf-8") as file:
            return file.read(_MAX_IDENTIFIER).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{identifier} does not hold a placeholder token: {shorten(error)}") from error


def join_vectors(path: Path, parts: Sequence[EncoderVectors]) -> EncoderVectors:
    """Return the vectors of one placeholder token from several files.

    The files need not say which text encoder they belong to: their widths distinguish them.
    """
    if len(parts) == 1:
        return parts[0]
    arrays: list[np.ndarray] = [vectors for part in parts for vectors in part.values()]
    if len(arrays) != len(ENCODERS):
        raise UserError(f"{path} holds a placeholder token {len(arrays)} times: the files do not belong together")
    return dict(zip(ENCODERS, sorted(arrays, key=lambda vectors: vectors.shape[-1]), strict=True))


def _step(path: Path) -> float:
    number = re.search(r"-steps-(\d+)", path.name)
    return float(number[1]) if number else float("inf")  # the file without a step is the last one
