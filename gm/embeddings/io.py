"""The files of a learned concept: `<version>_<step>_ti.ckpt`, and `.safetensors` for other programs.

The first four entries of the `.ckpt` are those of mindone's SDXL files, so theirs load here and ours there; `pooling`
and `details` (JSON: base model, step, seed, recipe) stand behind them. The `.safetensors` holds the rows as `clip_l`
and `clip_g`, as AUTOMATIC1111, ComfyUI and diffusers read them, and the same entries as metadata. `exchange` knows what
other programs write.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from gm.checkpoints import containers
from gm.checkpoints.lazy_tensor import in_memory
from gm.config import POOLING_RULES
from gm.embeddings import formats, interchange, notes
from gm.embeddings.embedding import Embedding
from gm.embeddings.formats import CLIP_G_TABLE, CLIP_L_TABLE, EncoderVectors
from gm.embeddings.interchange import EmbeddingFile
from gm.errors import UserError

NAMES = {".ckpt": (CLIP_L_TABLE, CLIP_G_TABLE), ".safetensors": ("clip_l", "clip_g")}


def save(concept: Embedding, path: str | Path) -> None:
    """Write `concept` to `path`, whole or not at all, as its ending says; UserError if that is not possible."""
    ending = Path(path).suffix
    if ending not in NAMES:
        raise UserError(f"{path} must end in .ckpt, or in .safetensors for other programs")
    tensors = dict(zip(NAMES[ending], map(in_memory, concept.vectors.values()), strict=True))
    containers.write(path, tensors, notes.entries(concept.placeholder_token, concept.num_vectors, _said(concept)))


def to_embedding_file(concept: Embedding) -> EmbeddingFile:
    """Return `concept` as other programs' files hold it."""
    return EmbeddingFile(
        "mindspore", {concept.placeholder_token: (concept.vectors["clip_l"], concept.vectors["clip_g"])}, _said(concept)
    )


def load(path: str | Path) -> Embedding:
    """Read an embedding file that holds one word; UserError if it holds several, and as `load_all` does."""
    found = load_all(path)
    if len(found) > 1:
        words = ", ".join(concept.placeholder_token for concept in found)
        raise UserError(f"{path} holds several words ({words}); give a file that holds one")
    return found[0]


def load_all(path: str | Path) -> list[Embedding]:
    """Read the words of an embedding file of any program, by what it holds, as `exchange.read` does.

    A file need not say its word: it is then called after the file, as other programs do, or as `token_identifier.txt`
    beside `learned_embeds` says. Raises UserError for what is no embedding file, holds one encoder only, contradicts
    itself, is damaged, or holds rows that are not finite.
    """
    path, found = Path(path), interchange.read(path)
    called = found.notes.get("placeholder_token")
    if found.format == "mindspore" and not called:
        for rows in found.words.values():
            _both(path, rows)
        raise UserError(f"{path} does not say which word it stands for (placeholder_token); save it again with one")
    name = path.name if path.is_dir() else path.stem
    return [
        Embedding(
            word or str(called or name),
            dict(zip(("clip_l", "clip_g"), _both(path, rows), strict=True)),
            *_noted(path, found.own(word)),
        )
        for word, rows in found.words.items()
    ]


def _said(concept: Embedding) -> dict[str, Any]:
    """Return the notes of one word."""
    return {"pooling": concept.pooling, "details": json.dumps(concept.metadata)}


def _noted(path: Path, own: dict[str, str]) -> tuple[str, dict[str, Any]]:
    """Return the pooling rule and the details of a word."""
    if own["pooling"] not in POOLING_RULES:
        raise UserError(
            f"{path} was learned under the pooling rule {own['pooling']!r}, which is not known: update the toolkit"
        )
    try:
        return own["pooling"], notes.details(own)
    except notes.Unreadable as error:
        raise UserError(f"{path} holds {error}: the file is damaged") from error


def _both(path: Path, rows: EncoderVectors) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of a word in both encoders; UserError if one is missing or they do not belong together."""
    one, two = rows
    if one is None or two is None:
        raise UserError(f"{path} lacks the rows of {formats.missing(rows)}; SDXL needs both: learn the concept on SDXL")
    if one.ndim != 2 or two.ndim != 2 or len(one) != len(two) or not len(one):
        raise UserError(
            f"{path} holds rows {list(one.shape)} and {list(two.shape)}; both need [vectors, width] with as many "
            "vectors: the file is damaged"
        )
    if not (np.isfinite(one).all() and np.isfinite(two).all()):
        raise UserError(
            f"{path} holds rows that are no finite numbers: it is damaged, or its training diverged; give another"
        )
    return one, two
