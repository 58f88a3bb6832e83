"""The file of a learned concept, `<version>_<step>_ti.ckpt`.

Its first four entries are those of mindone's SDXL files, so theirs load here and ours there; `pooling` and `details`
(JSON: base model, step, seed, recipe) stand behind them.
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
_POOLING_OF_OTHERS = "argmax"  # mindone records none, and pools at the placeholder


def save(concept: Concept, path: str | Path) -> None:
    """Write `concept` to `path` (`.ckpt`), whole or not at all; UserError if that is not possible."""
    if Path(path).suffix != ".ckpt":
        raise UserError(f"{path} must end in .ckpt, the format of learned files")
    tensors = {ROWS_1: in_memory(concept.rows_1), ROWS_2: in_memory(concept.rows_2)}
    entries: dict[str, str | int | float | bool] = {
        "placeholder_token": concept.placeholder,
        "num_vectors": concept.num_vectors,
        "pooling": concept.pooling,
        "details": json.dumps(concept.details),
    }
    containers.write(path, tensors, entries)


def load(path: str | Path) -> Concept:
    """Read a learned file; UserError if it is none, holds one encoder only, or contradicts itself."""
    contents = containers.read(path)
    missing = [name for name in (ROWS_1, ROWS_2) if name not in contents.tensors]
    if len(missing) == 2:
        raise UserError(f"{path} is no learned file: it holds no token rows; training writes *_ti.ckpt")
    if missing:
        encoder = "CLIP-L, text encoder 1" if missing == [ROWS_1] else "OpenCLIP bigG, text encoder 2"
        raise UserError(f"{path} lacks the rows of {encoder}; SDXL needs both: learn the concept on SDXL")
    if "placeholder_token" not in contents.metadata:
        raise UserError(f"{path} does not say which word it stands for (placeholder_token); save it again with one")
    rows_1, rows_2 = (np.array(contents.tensors[name].read(), np.float32) for name in (ROWS_1, ROWS_2))
    if rows_1.ndim != 2 or rows_2.ndim != 2 or len(rows_1) != len(rows_2) or not len(rows_1):
        raise UserError(
            f"{path} holds rows {list(rows_1.shape)} and {list(rows_2.shape)}; both need [vectors, width] with as many "
            "vectors: the file is damaged"
        )
    pooling = contents.metadata.get("pooling", _POOLING_OF_OTHERS)
    if pooling not in POOLING_RULES:
        raise UserError(
            f"{path} was learned under the pooling rule {pooling!r}, which is not known: update the toolkit"
        )
    try:
        details = json.loads(contents.metadata.get("details", "{}"))
    except ValueError as error:
        raise UserError(f"{path} holds details that are no JSON ({error}): the file is damaged") from error
    return Concept(contents.metadata["placeholder_token"], rows_1, rows_2, pooling, details)
