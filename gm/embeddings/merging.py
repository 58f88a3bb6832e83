"""Merging embeddings into one file, and mixing them into one embedding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gm.config.model import FAMILIES
from gm.embeddings.class_word import class_word
from gm.embeddings.embedding import NO_POOLING, Embedding
from gm.embeddings.encoders import CLIP_H
from gm.embeddings.formats import TokenVectors
from gm.embeddings.interpolation import spherical_mean
from gm.embeddings.io import EmbeddingFile
from gm.embeddings.metadata import merge_metadata
from gm.errors import UserError

_OF_A_RUN = ("step", "seed", "recipe", "mixed", "mix_method", "ot_config")


def merge(files: Mapping[str, EmbeddingFile]) -> EmbeddingFile:
    """Return the embeddings of all `files`, by path, in order, each with its pooling rule and details.

    Raises UserError for a placeholder token that occurs twice, in upper or lower case, or that its file does not name.
    """
    vectors: TokenVectors = {}
    metadata = {}
    sources: dict[str, str] = {}
    for path, file in files.items():
        for token, embedding in file.vectors.items():
            if token is None:
                raise UserError(
                    f"{path} does not name its placeholder token; give --placeholder_token, one for each --source"
                )
            duplicate = next((other for other in sources if other.lower() == token.lower()), None)
            if duplicate is not None:
                raise UserError(
                    f"two files have the placeholder token {duplicate}, {sources[duplicate]} and {path}; rename one: "
                    "--placeholder_token, one for each --source"
                )
            vectors[token] = embedding
            metadata[token] = file.metadata_entry(token)
            sources[token] = path
    return EmbeddingFile(next(iter(files.values())).format, vectors, merge_metadata(metadata))


def mix(
    embeddings: Sequence[Embedding], weights: Sequence[float], placeholder_token: str, method: str = "linear"
) -> Embedding:
    """Return the weighted mixture of `embeddings` as `placeholder_token`, by one of `MIX_METHODS`.

    Weights of 0.5 for two embeddings give their mean, 0.8 and 0.2 a point between them, a single 1.2 exaggerates. Its
    metadata have what all embeddings agree on, such as the base model and the class word, and under "mixed" weight and
    metadata of each. Raises UserError if weights and embeddings differ in number, or the embeddings in family, shape or
    pooling rule, and for vectors that slerp has no way between.
    """
    if len(weights) != len(embeddings):
        raise UserError(
            f"there are {len(embeddings)} embeddings and {len(weights)} weights; give --weights one for each --source"
        )
    first = embeddings[0]
    for other in embeddings[1:]:
        _check_compatible(first, other)
    pairs = list(zip(weights, embeddings, strict=True))
    vectors = {
        encoder: MIX_METHODS[method]([each.vectors[encoder] for each in embeddings], weights)
        for encoder in first.vectors
    }
    parts: list[dict[str, Any]] = [
        {"word": embedding.placeholder_token, "weight": float(weight), "details": embedding.metadata}
        for weight, embedding in pairs
    ]
    metadata = {**_shared_metadata(embeddings), "mixed": parts}
    if method != "linear":
        metadata["mix_method"] = method
    return Embedding(placeholder_token, vectors, first.pooling, metadata)


def _linear(arrays: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    """Return the weighted sum of arrays [n, width], float32."""
    return np.asarray(sum(np.float32(weight) * array for weight, array in zip(weights, arrays, strict=True)))


def _slerp(arrays: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    """Return vectors [n, width], float32, whose directions lie between those of `arrays`, and their norms too.

    Directional Textual Inversion (https://arxiv.org/abs/2512.13672) blends concepts like this: between two directions
    a straight line is shorter than either.
    """
    if sum(weights) <= 0:
        raise UserError(f"slerp needs --weights with a sum above 0, and it is {sum(weights):g}")
    norms = sum(
        weight * np.linalg.norm(array.astype(np.float64), axis=1, keepdims=True)
        for weight, array in zip(weights, arrays, strict=True)
    )
    if np.any(norms <= 0):
        raise UserError(f"the --weights {' '.join(f'{each:g}' for each in weights)} leave slerp a norm below 0")
    try:
        return np.asarray(norms * spherical_mean(arrays, weights), np.float32)
    except ValueError as error:
        raise UserError(f"slerp cannot mix the embeddings: {error}; give --method linear, or other weights") from error


MIX_METHODS = {"linear": _linear, "slerp": _slerp}


def _shared_metadata(embeddings: Sequence[Embedding]) -> dict[str, Any]:
    """Return the entries that are equal in all embeddings' metadata, without those of one run of training."""
    words = [class_word(embedding) for embedding in embeddings]
    first, *others = [dict(embedding.metadata) for embedding in embeddings]
    shared = {
        key: value
        for key, value in first.items()
        if key not in _OF_A_RUN and all(other.get(key) == value for other in others)
    }
    return {**shared, "class_word": words[0]} if words[0] and len(set(words)) == 1 else shared


def _check_compatible(first: Embedding, other: Embedding) -> None:
    tokens = f"{first.placeholder_token} and {other.placeholder_token}"
    families = [_family(first), _family(other)]
    if families[0] != families[1]:
        raise UserError(
            f"{tokens} are embeddings of {families[0]} and {families[1]}; only those of one family of models can be "
            "mixed: train the concept on the other"
        )
    if (other.num_vectors, other.dims) != (first.num_vectors, first.dims):
        raise UserError(f"{tokens} have {_shape(first)} and {_shape(other)}; only embeddings of one shape can be mixed")
    if other.pooling != first.pooling:
        raise UserError(
            f"{tokens} were trained with the pooling rules {first.pooling} and {other.pooling}; only embeddings of "
            "one rule can be mixed; --pooling gives the rule where a file does not say it"
        )


def _shape(embedding: Embedding) -> str:
    widths = " and ".join(str(width) for width in embedding.dims.values())
    return f"{embedding.num_vectors} vectors, {widths} wide"


def _family(embedding: Embedding) -> str:
    """Return the title of the family of models that an embedding is of."""
    if CLIP_H in embedding.vectors:
        return FAMILIES["sd2"].title
    return FAMILIES["sd1" if embedding.pooling == NO_POOLING else "sdxl"].title
