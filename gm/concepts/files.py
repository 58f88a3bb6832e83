"""The files of a learned concept: `<version>_<step>_ti.ckpt`, and `.safetensors` for other programs.

The first four entries of the `.ckpt` are those of mindone's SDXL files, so theirs load here and ours there; `pooling`
and `details` (JSON: base model, step, seed, recipe) stand behind them. The `.safetensors` holds the rows as `clip_l`
and `clip_g`, as AUTOMATIC1111, ComfyUI and diffusers read them, and the same entries as metadata. `formats` knows what
other programs write.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from gm.concepts import formats
from gm.concepts.concept import Concept
from gm.concepts.formats import ROWS_1, ROWS_2, Format, Part
from gm.config import POOLING_RULES
from gm.errors import UserError
from gm.weights import containers, recognition, torch_file
from gm.weights.lazy import in_memory

NAMES = {".ckpt": (ROWS_1, ROWS_2), ".safetensors": ("clip_l", "clip_g")}
_ENCODERS = {1: "CLIP-L, text encoder 1", 2: "OpenCLIP bigG, text encoder 2"}
_WIDTHS = {768: 1, 1280: 2}  # of a file that holds rows of one encoder and does not say of which
# diffusers writes a file for each encoder, `learned_embeds-steps-500.safetensors` and `learned_embeds_2-steps-500`.
_OF_A_PAIR = re.compile(r"(learned_embeds)(_2)?((?:-steps-\d+)?\.(?:safetensors|bin))")


def save(concept: Concept, path: str | Path) -> None:
    """Write `concept` to `path`, whole or not at all, as its ending says; UserError if that is not possible."""
    ending = Path(path).suffix
    if ending not in NAMES:
        raise UserError(f"{path} must end in .ckpt, or in .safetensors for other programs")
    tensors = dict(zip(NAMES[ending], map(in_memory, (concept.rows_1, concept.rows_2)), strict=True))
    entries: dict[str, str | int | float | bool] = {
        "placeholder_token": concept.placeholder,
        "num_vectors": concept.num_vectors,
        "pooling": concept.pooling,
        "details": json.dumps(concept.details),
    }
    containers.write(path, tensors, entries)


def load(path: str | Path) -> Concept:
    """Read a learned file that holds one word; UserError if it holds several, and as `load_all` does."""
    found = load_all(path)
    if len(found) > 1:
        words = ", ".join(concept.placeholder for concept in found)
        raise UserError(f"{path} holds several words ({words}); give a file that holds one")
    return found[0]


def load_all(path: str | Path) -> list[Concept]:
    """Read the words of a learned file of any program, by what it holds; or of a folder that diffusers wrote.

    diffusers writes a file for each encoder: one of them, or their folder, stands for both. A file need not say its
    word: it is then called after the file, as other programs do. Raises UserError for what is no learned file, holds
    one encoder only, contradicts itself, or is damaged; a PyTorch file is read without running what is in it.
    """
    path = Path(path)
    read = [_read(each) for each in _files(path)]
    (kind, _, metadata), *_ = read
    name = path.name if path.is_dir() else path.stem
    words: dict[str | None, list[Part]] = {}
    for _, parts, _ in read:
        for part in parts:
            words.setdefault(part.word, []).append(part)
    if kind is formats.FORMATS[0] and "placeholder_token" not in metadata:
        raise UserError(f"{path} does not say which word it stands for (placeholder_token); save it again with one")
    pooling = metadata.get("pooling", kind.pooling)
    if pooling not in POOLING_RULES:
        raise UserError(
            f"{path} was learned under the pooling rule {pooling!r}, which is not known: update the toolkit"
        )
    try:
        details = json.loads(metadata.get("details", "{}"))
    except ValueError as error:
        raise UserError(f"{path} holds details that are no JSON ({error}): the file is damaged") from error
    return [
        Concept(metadata.get("placeholder_token", word or name), *_both(path, parts), pooling, details)
        for word, parts in words.items()
    ]


def _files(path: Path) -> list[Path]:
    """Return the file, or the two that belong together."""
    if path.is_dir():
        found = sorted((_steps(p), p) for p in path.iterdir() if (m := _OF_A_PAIR.fullmatch(p.name)) and not m[2])
        if not found:
            raise UserError(f"{path} is a folder without learned_embeds.safetensors; give a learned file")
        path = found[-1][1]
    match = _OF_A_PAIR.fullmatch(path.name)
    if match is None:
        return [path]
    pair = [path.with_name(f"{match[1]}{second}{match[3]}") for second in ("", "_2")]
    return [each for each in pair if each.exists()] or [path]


def _steps(path: Path) -> float:
    number = re.search(r"-steps-(\d+)", path.name)
    return float(number[1]) if number else float("inf")  # the last file is the one without a number


def _read(path: Path) -> tuple[Format, list[Part], dict[str, str]]:
    tree: formats.Tree
    metadata: dict[str, str] = {}
    if torch_file.is_one(path):
        made: Any = torch_file.read(path)
        tree = made if isinstance(made, dict) else {}
    else:
        contents = containers.read(path)
        tree, metadata = contents.tensors, contents.metadata
    kind = formats.recognised(tree)
    parts = list(kind.parts(tree)) if kind else []
    if kind is None or not parts:
        seems = recognition.other_model(map(str, tree))
        hint = f"it seems to be {seems}" if seems else "it holds no token rows; training writes *_ti.ckpt"
        raise UserError(f"{path} is no learned file: {hint}")
    return kind, parts, metadata


def _both(path: Path, parts: list[Part]) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of one word in both encoders; UserError if one is missing or they do not belong together."""
    if len(parts) > 2:
        raise UserError(f"{path} holds the rows of {parts[0].word} {len(parts)} times: the file is damaged")
    if len(parts) == 2 and None in (parts[0].encoder, parts[1].encoder):
        parts = sorted(parts, key=lambda part: part.rows.shape[-1])  # CLIP-L is the narrower one
    elif len(parts) == 1:
        encoder = parts[0].encoder or _WIDTHS.get(parts[0].rows.shape[-1])
        missing = "one of the encoders" if encoder is None else _ENCODERS[3 - encoder]
        raise UserError(f"{path} lacks the rows of {missing}; SDXL needs both: learn the concept on SDXL")
    rows_1, rows_2 = (part.rows for part in parts)
    if rows_1.ndim != 2 or rows_2.ndim != 2 or len(rows_1) != len(rows_2) or not len(rows_1):
        raise UserError(
            f"{path} holds rows {list(rows_1.shape)} and {list(rows_2.shape)}; both need [vectors, width] with as many "
            "vectors: the file is damaged"
        )
    return rows_1, rows_2
