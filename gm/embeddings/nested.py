"""Embeddings inside something else: a LoRA file, the list or the single tensor of a PyTorch file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gm.checkpoints.lazy_tensor import LazyTensor
from gm.embeddings import encoders
from gm.embeddings.base_format import TokenVectors, Tree, read_vectors
from gm.errors import DamagedFileError

# A placeholder token may contain dots; the keys of its embedding follow the last one, with AUTOMATIC1111's exception.
_BUNDLED = re.compile(r"bundle_emb\.(?P<token>.+?)\.(?P<key>string_to_param\..+|[^.]+)")


def bundled_embeddings(tree: Tree) -> dict[str, dict[str, Any]]:
    """Return the trees of the embeddings in a LoRA file by placeholder token, {} if it holds none.

    Keys are `bundle_emb.<token>.<key of the embedding file>`: OneTrainer writes `clip_l` and `clip_g`
    (modules/modelSaver/*/*LoRASaver.py), AUTOMATIC1111 also reads `string_to_param.<key>`
    (extensions-builtin/Lora/networks.py).
    """
    bundles: dict[str, dict[str, Any]] = {}
    for name, tensor in tree.items():
        if not isinstance(name, str) or not (match := _BUNDLED.fullmatch(name)):
            continue
        bundle = bundles.setdefault(match["token"], {})
        kind, dot, key = match["key"].partition(".")
        if dot:
            bundle.setdefault(kind, {})[key] = tensor
        else:
            bundle[kind] = tensor
    return bundles


def without_bundles(tree: Tree) -> dict[str, Any]:
    """Return the rest of the file: the LoRA."""
    return {name: tensor for name, tensor in tree.items() if not str(name).startswith("bundle_emb.")}


def bundle_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata of a LoRA file that hold for the embeddings in it: author, licence and so on."""
    entries = {key: value for key, value in metadata.items() if key.startswith("modelspec.")}
    for key in ("implementation", "implementation_version", "thumbnail"):
        entries.pop(f"modelspec.{key}", None)
    if model := str(entries.get("modelspec.architecture", "")).partition("/")[0]:
        entries["modelspec.architecture"] = f"{model}/textual-inversion"
    return entries


def merged_dicts(items: Sequence[Any]) -> Tree | None:
    """Return the dicts of a list as one, None if a key occurs twice or the list holds anything else."""
    if not items or not all(isinstance(item, dict) for item in items):
        return None
    merged = {key: value for item in items for key, value in item.items()}
    return merged if len(merged) == sum(map(len, items)) else None


def list_vectors(items: Sequence[Any]) -> TokenVectors:
    """Return the vectors in a list of dicts `{placeholder token: vectors}`, one or more for each text encoder.

    Their width tells the encoder, and equal ones are joined, as in ComfyUI (comfy/sd1_clip.py, `load_embed`). If the
    encoders name the token differently, it has no name. Raises DamagedFileError for a list of anything else.
    """
    if not items or not all(isinstance(item, dict) for item in items):
        raise DamagedFileError("a list of something else than embeddings")
    pairs = [(token, read_vectors(tensor)) for item in items for token, tensor in item.items()]
    if not all(isinstance(token, str) for token, _ in pairs):
        raise DamagedFileError("a placeholder token that is not a string")
    parts: dict[str | None, dict[str, list[np.ndarray]]] = {}
    for token, array in pairs:
        parts.setdefault(token, {}).setdefault(encoders.by_width(array), []).append(array)
    joined: TokenVectors = {
        token: {encoder: np.concatenate(arrays) for encoder, arrays in each.items()} for token, each in parts.items()
    }
    if len(joined) == 2 and len({encoder for each in joined.values() for encoder in each}) == 2:
        first, second = joined.values()
        if len(first) == len(second) == 1:
            return {None: {**first, **second}}
    return joined


def tensor_vectors(tensor: LazyTensor) -> TokenVectors:
    """Return the vectors of a PyTorch file that holds a single tensor, without the name of its token."""
    array = read_vectors(tensor)
    return {None: {encoders.by_width(array): array}}


def is_list_of_dicts(content: Any) -> bool:
    """Return whether a PyTorch file holds a list of dicts."""
    return isinstance(content, list) and bool(content) and all(isinstance(item, Mapping) for item in content)
