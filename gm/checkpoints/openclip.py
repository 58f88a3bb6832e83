"""transformers' CLIPTextModelWithProjection → OpenCLIP's text tower, which the published file holds as encoder 2.

It stands second in a base model and alone in a refiner.
"""

from __future__ import annotations

import re

import numpy as np

from gm.checkpoints.lazy_tensor import LazyTensor, in_memory

PREFIXES = {"base": "conditioner.embedders.1.model.", "refiner": "conditioner.embedders.0.model."}  # by kind of model
# Scales CLIP's comparison of images with texts, so the folder has none; the published file holds ln 100.
LOGIT_SCALE = 4.6052

_RULES = (
    (r"^text_model\.", ""),
    (r"^embeddings\.token_embedding\.", "token_embedding."),
    (r"^embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^final_layer_norm\.", "ln_final."),
    (r"^text_projection\.weight$", "text_projection"),
    (r"^encoder\.layers\.", "transformer.resblocks."),
    (r"\.layer_norm(\d)\.", r".ln_\1."),
    (r"\.self_attn\.", ".attn."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
)
_QUERY = re.compile(r"(.*\.attn)\.q_proj\.(weight|bias)")


def from_transformers(tensors: dict[str, LazyTensor], prefix: str) -> dict[str, LazyTensor]:
    """Return the encoder by its published names, which begin with `prefix`.

    Query, key and value become one matrix, and the projection is transposed.
    """
    renamed = {_rename(name): tensor for name, tensor in tensors.items()}
    published = {}
    for name in list(renamed):
        match = _QUERY.fullmatch(name)
        parts = [f"{match[1]}.{part}_proj.{match[2]}" for part in "qkv"] if match else []
        if match and all(part in renamed for part in parts):
            published[f"{prefix}{match[1]}.in_proj_{match[2]}"] = _joined([renamed.pop(part) for part in parts])
    if "text_projection" in renamed:
        renamed["text_projection"] = _transposed(renamed["text_projection"])
    renamed.setdefault("logit_scale", in_memory(np.array(LOGIT_SCALE, np.float32)))
    return published | {prefix + name: tensor for name, tensor in renamed.items()}


def _rename(name: str) -> str:
    for pattern, replacement in _RULES:
        name = re.sub(pattern, replacement, name)
    return name


def _joined(parts: list[LazyTensor]) -> LazyTensor:
    """Return `parts` one below the other."""

    def release() -> None:
        for part in parts:
            part.release()

    shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
    return LazyTensor(shape, parts[0].dtype, lambda: np.concatenate([part.read() for part in parts]), release)


def _transposed(tensor: LazyTensor) -> LazyTensor:
    """Return [outputs, inputs], a linear layer's weight, as the matrix W of x @ W."""
    return LazyTensor(tensor.shape[::-1], tensor.dtype, lambda: tensor.read().T, tensor.release)
