"""Contents of an embedding file for people: vectors, pooling rules, metadata, and the tokens nearest to each vector."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gm.checkpoints import containers, diffusers_format, key_mapping
from gm.embeddings.embedding import NO_POOLING
from gm.embeddings.embedding_file import EmbeddingFile
from gm.embeddings.encoders import EncoderVectors, by_width
from gm.embeddings.formats import FORMATS, MindoneFormat, MindoneSDFormat
from gm.embeddings.nearest_tokens import nearest_tokens
from gm.errors import UserError
from gm.text.tokenizer import VOCAB_SIZE

_NEAREST_COUNT = 5
_DIFFUSERS_FOLDERS = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}
_TABLE_ENDING = "embeddings.token_embedding.weight"  # of transformers' key


def describe(file: EmbeddingFile, tables: Mapping[str, np.ndarray] | None = None) -> dict[str, Any]:
    """Return the contents of an embedding file for JSON; with token `tables` by encoder also the nearest tokens."""
    rules = {token or "": _pooling(file, token) for token in file.vectors}
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


def _pooling(file: EmbeddingFile, token: str | None) -> str:
    if file.is_of_sd(file.vectors[token]):
        return NO_POOLING  # whatever the program pools of SDXL
    return file.token_metadata(token).get("pooling", NO_POOLING)


def read_token_tables(weight: str | Path) -> dict[str, np.ndarray]:
    """Return the token embeddings [vocabulary, width] of each text encoder of a model, without reading the rest of it.

    `weight` is a single file or a diffusers folder. Rows that textual inversion added are left out. Raises UserError
    if it lacks one of them.
    """
    path = Path(weight)
    tables = _read_diffusers_tables(path) if path.is_dir() else _read_tables(path)
    return {encoder: table[:VOCAB_SIZE] for encoder, table in tables.items()}


def _read_tables(path: Path) -> dict[str, np.ndarray]:
    tensors = {key_mapping.published_name(name): each for name, each in containers.read_weights(path).tensors.items()}
    for keys in (MindoneSDFormat.keys, MindoneFormat.keys):
        names = {encoder: key_mapping.published_name(name) for encoder, name in keys.items()}
        tables = {encoder: tensors[name].read() for encoder, name in names.items() if name in tensors}
        if tables and (keys is MindoneSDFormat.keys or len(tables) == len(keys)):
            return tables
    raise UserError(
        f"--weight {path} is no model of SDXL, Stable Diffusion 1 or 2: it lacks the token embeddings of their text "
        "encoders"
    )


def _read_diffusers_tables(folder: Path) -> dict[str, np.ndarray]:
    """Return the tables of a folder; one without text_encoder_2 is SDXL's only if it does not say otherwise."""
    index = folder / "model_index.json"
    pipeline = str(_parse_json(index.read_text(encoding="utf-8")).get("_class_name")) if index.is_file() else ""
    if re.fullmatch(r"StableDiffusion(?!XL)\w*Pipeline", pipeline):
        table = _read_diffusers_table(folder, "clip_l")
        return {by_width(table): table}
    return {encoder: _read_diffusers_table(folder, encoder) for encoder in MindoneFormat.keys}


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
