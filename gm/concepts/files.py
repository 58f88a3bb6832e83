"""The files of a learned concept: `<version>_<step>_ti.ckpt`, and `.safetensors` for other programs.

The first four entries of the `.ckpt` are those of mindone's SDXL files, so theirs load here and ours there; `pooling`
and `details` (JSON: base model, step, seed, recipe) stand behind them. The `.safetensors` holds the rows as `clip_l`
and `clip_g`, as AUTOMATIC1111, ComfyUI and diffusers read them, and the same entries as metadata.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from gm.concepts.concept import Concept
from gm.config import POOLING_RULES
from gm.errors import UserError
from gm.weights import containers
from gm.weights.lazy import in_memory

ROWS_1 = "conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.embedding_table"
ROWS_2 = "conditioner.embedders.1.model.token_embedding.embedding_table"
NAMES = {".ckpt": (ROWS_1, ROWS_2), ".safetensors": ("clip_l", "clip_g")}
# Of files that record none: mindone pools at the placeholder, most programs that write `clip_l` at the end of the text.
_POOLING_OF_OTHERS = {".ckpt": "argmax", ".safetensors": "end_of_text"}


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
    """Read a learned file, of either kind by what it holds.

    A file of another program need not say its word: it is then called after the file, as those programs do. UserError
    if it is no learned file, holds one encoder only, or contradicts itself.
    """
    contents = containers.read(path)
    kind = next((ending for ending, names in NAMES.items() if set(names) & set(contents.tensors)), None)
    if kind is None:
        raise UserError(f"{path} is no learned file: it holds no token rows; training writes *_ti.ckpt")
    missing = [name for name in NAMES[kind] if name not in contents.tensors]
    if missing:
        encoder = "CLIP-L, text encoder 1" if missing == [NAMES[kind][0]] else "OpenCLIP bigG, text encoder 2"
        raise UserError(f"{path} lacks the rows of {encoder}; SDXL needs both: learn the concept on SDXL")
    placeholder = contents.metadata.get("placeholder_token", Path(path).stem if kind == ".safetensors" else None)
    if placeholder is None:
        raise UserError(f"{path} does not say which word it stands for (placeholder_token); save it again with one")
    rows_1, rows_2 = (np.array(contents.tensors[name].read(), np.float32) for name in NAMES[kind])
    if rows_1.ndim != 2 or rows_2.ndim != 2 or len(rows_1) != len(rows_2) or not len(rows_1):
        raise UserError(
            f"{path} holds rows {list(rows_1.shape)} and {list(rows_2.shape)}; both need [vectors, width] with as many "
            "vectors: the file is damaged"
        )
    pooling = contents.metadata.get("pooling", _POOLING_OF_OTHERS[kind])
    if pooling not in POOLING_RULES:
        raise UserError(
            f"{path} was learned under the pooling rule {pooling!r}, which is not known: update the toolkit"
        )
    try:
        details = json.loads(contents.metadata.get("details", "{}"))
    except ValueError as error:
        raise UserError(f"{path} holds details that are no JSON ({error}): the file is damaged") from error
    return Concept(placeholder, rows_1, rows_2, pooling, details)
