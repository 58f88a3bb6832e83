"""Token table of a text encoder in a diffusers folder, grown by the vectors of placeholder tokens."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from gm.checkpoints import containers, diffusers_format
from gm.checkpoints.lazy_tensor import LazyTensor
from gm.checkpoints.narrow_floats import FLOAT8
from gm.errors import UserError

_KEY = "embeddings.token_embedding.weight"
_READ_AS = {"bfloat16": "float32", **dict.fromkeys(FLOAT8, "float16")}  # types that NumPy lacks


def check(folder: Path, num_tokens: int) -> None:
    """Raise UserError unless the text encoder in `folder` has a token embedding for each of the tokens."""
    tensors = diffusers_format.read_network(folder)
    count = tensors[_key(folder, tensors)].shape[0]
    if count < num_tokens:
        raise UserError(
            f"{folder} has {count} token embeddings, and its tokenizer {num_tokens} tokens: they do not belong "
            "together; download or copy the folder again"
        )


def write_grown(folder: Path, path: Path, first: int, vectors: np.ndarray) -> int:
    """Write the text encoder in `folder` to `path` with `vectors` [n, width] in its token table from the id `first` on.

    Returns the size of the table. Vectors after `first`, which belong to no token, are left out as by
    `resize_token_embeddings`. The table is float32, so that the vectors are not rounded; other tensors keep their type
    (bfloat16 becomes float32, float8 float16, which hold the same values). Raises UserError as `containers.write`.
    """
    tensors = diffusers_format.read_network(folder)
    key = _key(folder, tensors)
    table = tensors[key]
    size = first + len(vectors)

    def read() -> np.ndarray:
        return np.concatenate((table.read()[:first], vectors), dtype=np.float32)

    grown = LazyTensor((size, vectors.shape[1]), "float32", read, table.release)
    out = {name: _with_numpy_dtype(tensor) for name, tensor in tensors.items()}
    containers.write(path, out | {key: grown}, {"format": "pt"})
    return size


def _key(folder: Path, tensors: diffusers_format.Tensors) -> str:
    keys = [key for key in tensors if key.endswith(_KEY) and len(tensors[key].shape) == 2]
    if len(keys) != 1:
        raise UserError(f"{folder} has no {_KEY}, the token embeddings of a text encoder; download or copy it again")
    return keys[0]


def _with_numpy_dtype(tensor: LazyTensor) -> LazyTensor:
    return dataclasses.replace(tensor, dtype=_READ_AS.get(tensor.dtype, tensor.dtype))
