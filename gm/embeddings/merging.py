"""Several learned words in one file, and one word out of several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gm.embeddings import notes
from gm.embeddings.embedding import Concept
from gm.embeddings.formats import Words
from gm.embeddings.interchange import Learned
from gm.errors import UserError


def merged(files: Sequence[Learned]) -> Learned:
    """Return the words of all `files` together, in their order, each with its pooling rule and details.

    Raises UserError for a word that is there twice, or that its file does not say. Upper and lower case are the same.
    """
    words: Words = {}
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
    return Learned(files[0].format, words, notes.merged(own))


def mixed(concepts: Sequence[Concept], weights: Sequence[float], word: str) -> Concept:
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
        if (other.rows_1.shape, other.rows_2.shape) != (first.rows_1.shape, first.rows_2.shape):
            raise UserError(
                f"{first.placeholder} has {_shape(first)} and {other.placeholder} {_shape(other)}; only words of one "
                "shape can be mixed"
            )
        if other.pooling != first.pooling:
            raise UserError(
                f"{first.placeholder} was learned with pooling {first.pooling} and {other.placeholder} with "
                f"{other.pooling}; only words of one rule can be mixed"
            )
    rows_1 = sum(np.float32(w) * concept.rows_1 for w, concept in zip(weights, concepts, strict=True))
    rows_2 = sum(np.float32(w) * concept.rows_2 for w, concept in zip(weights, concepts, strict=True))
    parts: list[dict[str, Any]] = [
        {"word": concept.placeholder, "weight": float(weight), "details": concept.details}
        for weight, concept in zip(weights, concepts, strict=True)
    ]
    return Concept(word, np.asarray(rows_1), np.asarray(rows_2), first.pooling, {"mixed": parts})


def _shape(concept: Concept) -> str:
    return f"{concept.num_vectors} rows, {concept.rows_1.shape[1]} and {concept.rows_2.shape[1]} wide"
