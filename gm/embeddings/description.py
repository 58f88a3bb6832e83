"""Contents of an embedding file for people: vectors, pooling rules, metadata, and the tokens nearest to each vector."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gm.checkpoints import containers, diffusers_format, key_mapping
from gm.embeddings.embedding import NO_POOLING
from gm.embeddings.embedding_file import EmbeddingFile
from gm.embeddings.encoders import EncoderVectors
from gm.embeddings.formats import FORMATS, MindoneFormat
from gm.embeddings.nearest_tokens import nearest_tokens
from gm.errors import UserError
from gm.text.tokenizer import VOCAB_SIZE

_NEAREST_COUNT = 5
_DIFFUSERS_FOLDERS = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}
_TABLE_ENDING = "embeddings.token_embedding.weight"  # of transformers' key


def describe(file: EmbeddingFile, tables: Mapping[str, np.ndarray] | None = None) -> dict[str, Any]:
    """Return the contents of an embedding file for JSON; with token `tables` by encoder also the nearest tokens."""
    rules = {token or "": file.token_metadata(token).get("pooling", NO_POOLING) for token in file.vectors}
    pooling = rules if len(set(rules.values())) > 1 else next(iter(rules.values()))
    remarks = {"remarks": list(file.remarks)} if file.remarks else {}
    return {
        "format": file.format,
        "program": file.program or FORMATS[file.format].program,
        **({"pooling": pooling} if pooling else {}),
        "embeddings": {token or "": _describe_vectors(vectors, tables) for token, vectors in file.vectors.items()},
        "metadata": {key: _parse_json(value) for key, value in file.metadata.items()},
        **remarks,
    }


def read_token_tables(weight: str | Path) -> dict[str, np.ndarray]:
    """Return the token embeddings [vocabulary, width] of each text encoder of a model, without reading the rest of it.

    `weight` is a single file or a diffusers folder. Rows that textual inversion added are left out. Raises UserError
    if it lacks one of them.
    """
    path = Path(weight)
    read = _read_diffusers_table if path.is_dir() else _read_table
    return {encoder: read(path, encoder)[:VOCAB_SIZE] for encoder in MindoneFormat.keys}


def _read_table(path: Path, encoder: str) -> np.ndarray:
    tensors = containers.read_weights(path).tensors
    name = MindoneFormat.keys[encoder]
    tensor = tensors.get(name) or tensors.get(key_mapping.published_name(name))
    if tensor is None:
        raise UserError(f"--weight {path} is not an SDXL model: its token embeddings are missing")
    return tensor.read()


def _read_diffusers_table(folder: Path, encoder: str) -> np.ndarray:
    subfolder = folder / _DIFFUSERS_FOLDERS[encoder]
    if not subfolder.is_dir():
        raise UserError(f"--weight {folder} is not a diffusers SDXL folder: it has no {subfolder.name}")
    for key, tensor in diffusers_format.read_network(subfolder).items():
        if key.endswith(_TABLE_ENDING):
            return tensor.read()
    raise UserError(f"--weight {subfolder} has no token embeddings")


def _describe_vectors(vectors: EncoderVectors, tables: Mapping[str, np.ndarray] | None) -> dict[str, Any]:
    description: dict[str, Any] = {}
    for encoder, array in vectors.items():
        norms = [round(float(norm), 4) for norm in np.linalg.norm(array, axis=1)]
        description[encoder] = {"vectors": len(array), "width": array.shape[1], "norms": norms}
        if tables and encoder in tables:
            nearest = nearest_tokens(array, tables[encoder], _NEAREST_COUNT)
            description[encoder]["nearest"] = [[f"{token} {cosine:.2f}" for token, cosine in each] for each in nearest]
    return description


def _parse_json(value: Any) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) and value[:1] in ("{", "[") else value
    except ValueError:
        return value
