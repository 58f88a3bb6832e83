"""Merging embeddings into one file, and mixing them into one embedding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gm.embeddings.embedding import Embedding
from gm.embeddings.formats import TokenVectors
from gm.embeddings.io import EmbeddingFile
from gm.embeddings.metadata import merge_metadata
from gm.errors import UserError


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


def mix(embeddings: Sequence[Embedding], weights: Sequence[float], placeholder_token: str) -> Embedding:
    """Return the weighted sum of `embeddings` as `placeholder_token`, with their weights and metadata in its metadata.

    Weights of 0.5 for two embeddings give their mean, 0.8 and 0.2 a point between them, a single 1.2 exaggerates.
    Raises UserError if weights and embeddings differ in number, or the embeddings in shape or pooling rule.
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
        encoder: np.asarray(sum(np.float32(weight) * embedding.vectors[encoder] for weight, embedding in pairs))
        for encoder in first.vectors
    }
    parts: list[dict[str, Any]] = [
        {"word": embedding.placeholder_token, "weight": float(weight), "details": embedding.metadata}
        for weight, embedding in pairs
    ]
    return Embedding(placeholder_token, vectors, first.pooling, {"mixed": parts})


def _check_compatible(first: Embedding, other: Embedding) -> None:
    tokens = f"{first.placeholder_token} and {other.placeholder_token}"
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
