"""Output embeddings of OneTrainer.

An output embedding takes the place of what the text encoder returns at its tokens, under keys that end in `_out`; the
input vectors beside it are zeros then (OneTrainer, modules/model/BaseModel.py, `is_output_embedding`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gm.embeddings.base_format import Tree
from gm.embeddings.encoders import ForeignEmbeddingError

OUTPUT_KEYS = ("clip_l_out", "clip_g_out", "emb_params_out", "emp_params_out")


def output_keys(tree: Tree) -> list[str]:
    """Return the keys of output embeddings in a file."""
    return [key for key in OUTPUT_KEYS if key in tree]


def check_output_embedding(tree: Tree, inputs: Sequence[np.ndarray]) -> None:
    """Raise ForeignEmbeddingError if the file holds output embeddings and its `inputs` say nothing."""
    keys = output_keys(tree)
    if keys and not any(array.any() for array in inputs):
        raise ForeignEmbeddingError(
            f"an output embedding of OneTrainer ({', '.join(keys)}), which replaces the output of the text encoders, "
            "and no input vectors; train it there without output embedding"
        )
