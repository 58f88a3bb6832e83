"""Adjustment of embeddings when sampling: their vectors move towards those of a class word, in norm and direction.

Trained vectors drift from those of their class word, and prompts are followed less. This is undone in part
without training (Bui et al., 2025, "Mitigating Semantic Collapse in Generative Personalization with Test-Time Embedding
Adjustment", https://arxiv.org/abs/2506.22685; α 0.5 and ρ 0.2 are their choice). For a vector e and that of the class
word, c::

    n  = (1 - α) |e| + α |c|
    e' = slerp(n e / |e|, n c / |c|, ρ)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from gm.embeddings import init
from gm.embeddings.embedding import LoadedEmbeddings, VectorAdjustment
from gm.embeddings.interpolation import slerp
from gm.text.tokenizer import VOCAB_SIZE

TokenVectorsOf = Callable[[str, Sequence[int]], np.ndarray]  # encoder, ids → vectors of its token table [n, width]


def adjust(vectors: np.ndarray, class_vectors: np.ndarray, alpha: float, rho: float) -> np.ndarray:
    """Return `vectors` [n, width] adjusted towards `class_vectors` [n, width], float32; zero vectors stay."""
    e, c = np.asarray(vectors, np.float64), np.asarray(class_vectors, np.float64)
    norm_e, norm_c = (np.linalg.norm(each, axis=1, keepdims=True) for each in (e, c))
    is_zero = (norm_e == 0) | (norm_c == 0)
    n = (1.0 - alpha) * norm_e + alpha * norm_c
    unit_e, unit_c = (each / np.where(is_zero, 1.0, norm) for each, norm in ((e, norm_e), (c, norm_c)))
    return np.where(is_zero, e, slerp(n * unit_e, n * unit_c, rho)).astype(np.float32)


def adjusted_vectors(
    embeddings: LoadedEmbeddings, encoders: Sequence[str], token_vectors: TokenVectorsOf
) -> dict[str, np.ndarray]:
    """Return the vectors of `embeddings` in each of `encoders`, with all adjustments; `token_vectors` are the model's.

    The class word's tokens are repeated in turn, one for each vector, as initial vectors are. A text encoder in which
    an embedding has zeros, as its file has nothing for it, keeps them.
    """
    adjusted = {}
    for encoder in encoders:
        result = embeddings.vectors[encoder].copy()
        for each in embeddings.adjustments:
            vectors = result[each.vector_slice]
            table = token_vectors(encoder, each.class_ids)
            class_vectors = init.from_tokens(table, list(range(len(table))), len(vectors))
            result[each.vector_slice] = adjust(vectors, class_vectors, each.alpha, each.rho)
        adjusted[encoder] = result
    return adjusted


def with_adjusted_copies(
    embeddings: LoadedEmbeddings, copies: Iterable[tuple[str, str, VectorAdjustment | None]]
) -> LoadedEmbeddings:
    """Return `embeddings` with more placeholder tokens: `copies` are (token, name of its copy, adjustment of the copy).

    The tokenizer of `embeddings` gets the names. The slice of an adjustment is set to that of the copy.
    """
    tokenizer, vectors, adjustments = embeddings.tokenizer, dict(embeddings.vectors), list(embeddings.adjustments)
    for token, name, adjustment in copies:
        ids = tokenizer.placeholders[token]
        copied = tokenizer.add_placeholder(name, len(ids))
        source = slice(ids[0] - VOCAB_SIZE, ids[-1] + 1 - VOCAB_SIZE)
        vectors = {encoder: np.concatenate([array, array[source]]) for encoder, array in vectors.items()}
        if adjustment is not None:
            place = slice(copied[0] - VOCAB_SIZE, copied[-1] + 1 - VOCAB_SIZE)
            adjustments.append(dataclasses.replace(adjustment, vector_slice=place))
    return dataclasses.replace(embeddings, vectors=vectors, adjustments=tuple(adjustments))
