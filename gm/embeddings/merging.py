"""Several learned words in one file, and one word out of several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gm.embeddings import notes
from gm.embeddings.embedding import Embedding
from gm.embeddings.formats import TokenVectors
from gm.embeddings.interchange import EmbeddingFile
from gm.errors import UserError


def merge(files: Sequence[EmbeddingFile]) -> EmbeddingFile:
    """Return the words of all `files` together, in their order, each with its pooling rule and details.

    Raises UserError for a word that is there twice, or that its file does not say. Upper and lower case are the same.
    """
    words: TokenVectors = {}
    own = {}
    for learned in files:
        for word, rows in learned.words.items():
            if word is None:
                raise UserError("a file does not say its word; give --placeholder_token, one for each --source")
            twin = next((other for other in words if str(other).lower() == word.lower()), None)
            if twin is not None:
                raise UserError(
                    f"two files hold the word {twin}; call one otherwise: --placeholder_token, one for each file"
                )
            words[word], own[word] = rows, learned.own(word)
    return EmbeddingFile(files[0].format, words, notes.merged(own))


def mix(concepts: Sequence[Embedding], weights: Sequence[float], word: str) -> Embedding:
    """Return the sum of the rows of `concepts`, each times its weight, as `word`, with the recipe in its details.

    A half of each of two is their mean, 0.8 and 0.2 lies between them, a single 1.2 exaggerates. Raises UserError for
    as many weights as there are not concepts, and for concepts of other shapes or pooling rules.
    """
    if len(weights) != len(concepts):
        raise UserError(
            f"there are {len(concepts)} words and {len(weights)} weights; give --weights one for each --source"
        )
    first = concepts[0]
    for other in concepts[1:]:
        names = f"{first.placeholder_token} and {other.placeholder_token}"
        if (other.num_vectors, other.dims) != (first.num_vectors, first.dims):
            raise UserError(
                f"{names} have {_shape(first)} and {_shape(other)}; only embeddings of one shape can be mixed"
            )
        if other.pooling != first.pooling:
            raise UserError(
                f"{names} were trained with the pooling rules {first.pooling} and {other.pooling}; only embeddings of "
                "one rule can be mixed"
            )
    vectors = {
        encoder: np.asarray(sum(np.float32(w) * c.vectors[encoder] for w, c in zip(weights, concepts, strict=True)))
        for encoder in first.vectors
    }
    parts: list[dict[str, Any]] = [
        {"word": concept.placeholder_token, "weight": float(weight), "details": concept.metadata}
        for weight, concept in zip(weights, concepts, strict=True)
    ]
    return Embedding(word, vectors, first.pooling, {"mixed": parts})


def _shape(concept: Embedding) -> str:
    dims = " and ".join(str(vectors.shape[1]) for vectors in concept.vectors.values())
    return f"{concept.num_vectors} vectors, {dims} wide"
