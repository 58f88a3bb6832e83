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
        if (other.clip_l.shape, other.clip_g.shape) != (first.clip_l.shape, first.clip_g.shape):
            raise UserError(
                f"{first.placeholder} has {_shape(first)} and {other.placeholder} {_shape(other)}; only words of one "
                "shape can be mixed"
            )
        if other.pooling != first.pooling:
            raise UserError(
                f"{first.placeholder} was learned with pooling {first.pooling} and {other.placeholder} with "
                f"{other.pooling}; only words of one rule can be mixed"
            )
    clip_l = sum(np.float32(w) * concept.clip_l for w, concept in zip(weights, concepts, strict=True))
    clip_g = sum(np.float32(w) * concept.clip_g for w, concept in zip(weights, concepts, strict=True))
    parts: list[dict[str, Any]] = [
        {"word": concept.placeholder, "weight": float(weight), "details": concept.details}
        for weight, concept in zip(weights, concepts, strict=True)
    ]
    return Embedding(word, np.asarray(clip_l), np.asarray(clip_g), first.pooling, {"mixed": parts})


def _shape(concept: Embedding) -> str:
    return f"{concept.num_vectors} rows, {concept.clip_l.shape[1]} and {concept.clip_g.shape[1]} wide"
