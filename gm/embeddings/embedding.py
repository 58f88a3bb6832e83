"""Embedding: a placeholder token and its trained vectors in each text encoder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PureWindowsPath
from typing import Any

import numpy as np

from gm.config.model import ModelConfig
from gm.errors import UserError
from gm.text.tokenizer import Tokenizer

NO_POOLING = ""  # of an embedding of Stable Diffusion 1 or 2, which pool no text
UNKNOWN_POOLING = "unknown"  # of an embedding whose file does not say with which pooling rule it was trained


@dataclass(frozen=True)
class Embedding:
    """The trained vectors of one placeholder token.

    vectors: float32 [num_vectors, width] by text encoder, "clip_l" and "clip_g", or one of them, or "clip_h"; pooling:
    the rule of the pooled text vector that they were trained with, `UNKNOWN_POOLING` or `NO_POOLING`; metadata: JSON
    values stored in the file (base model, step, seed, training options, entries of other programs)
    """

    placeholder_token: str
    vectors: dict[str, np.ndarray]
    pooling: str = "end_of_text"
    metadata: dict[str, Any] = field(default_factory=dict)
    source: str = ""

    @property
    def name(self) -> str:
        """Name of its file, without folders and suffix."""
        return file_name(self.source)

    @property
    def num_vectors(self) -> int:
        return len(next(iter(self.vectors.values())))

    @property
    def dims(self) -> dict[str, int]:
        """Width of a vector in each text encoder."""
        return {encoder: vectors.shape[1] for encoder, vectors in self.vectors.items()}


@dataclass(frozen=True)
class VectorAdjustment:
    """Vectors, by their place among all, that sampling moves towards the tokens of a class word (TEA's α and ρ)."""

    vector_slice: slice
    class_ids: tuple[int, ...]
    alpha: float
    rho: float


@dataclass(frozen=True)
class LoadedEmbeddings:
    """Embeddings combined for the text encoders: a tokenizer with their placeholder tokens, and all vectors.

    `vectors` [total, width] by text encoder; token id `vocab_size + k` selects vector k. `adjustments` change some of
    them once the token tables of the model are at hand (`gm.embeddings.adjustment`).
    """

    tokenizer: Tokenizer
    vectors: dict[str, np.ndarray]
    adjustments: tuple[VectorAdjustment, ...] = ()


def safe_filename(token: str) -> str:
    """Return `token` without the characters that a file name should not have; "" if nothing is left."""
    return re.sub(r"[^\w.-]+", "", token).strip("._-")[:64]


def file_name(path: str) -> str:
    """Return the name of a file without folders and suffix, or the name of a folder."""
    name = PureWindowsPath(path).name  # takes both kinds of slashes
    return re.sub(r"\.(?:ckpt|safetensors|pti|pt|bin|png|webp)$", "", name, flags=re.IGNORECASE)


def check_dims(embedding: Embedding, config: ModelConfig) -> None:
    """Raise UserError if the embedding's vectors do not fit the model's text encoders.

    One encoder may be missing of SDXL's embeddings; those of Stable Diffusion 1 lack it and are not meant for SDXL.
    """
    dims = {name: encoder.width for name, encoder in config.text_encoders.items()}
    is_of_sd = embedding.pooling == NO_POOLING and config.has_class_embedding
    if is_of_sd or any(dims.get(name) != width for name, width in embedding.dims.items()):
        widths = " and ".join(map(str, embedding.dims.values()))
        model_widths = " and ".join(map(str, dims.values()))
        file = f" in {embedding.source}" if embedding.source else ""
        raise UserError(
            f"{embedding.placeholder_token}{file} has vectors of {widths} values, the model's have {model_widths}: it "
            "was trained on another model; use that model's --config and --weight"
        )


def combine(embeddings: Sequence[Embedding], config: ModelConfig) -> LoadedEmbeddings:
    """Combine any number of embeddings; a text encoder without vectors gets zeros in their place.

    Raises UserError if one does not fit the model, or two have the same placeholder token; the message names the files.
    """
    tokenizer = Tokenizer(config.context_length)
    for number, embedding in enumerate(embeddings):
        check_dims(embedding, config)
        try:
            tokenizer.add_placeholder(embedding.placeholder_token, embedding.num_vectors, embedding.name)
        except UserError as error:
            raise UserError(_conflict_message(error, embedding, embeddings[:number])) from error
    vectors = {}
    for name, encoder in config.text_encoders.items():
        # Without embeddings there is one vector that no id selects, because MindSpore has no empty tensors.
        unused = np.zeros((1, encoder.width), np.float32)
        arrays = [
            embedding.vectors.get(name, np.zeros((embedding.num_vectors, encoder.width), np.float32))
            for embedding in embeddings
        ]
        vectors[name] = np.concatenate(arrays or [unused])
    return LoadedEmbeddings(tokenizer, vectors)


def _conflict_message(error: UserError, embedding: Embedding, earlier: Sequence[Embedding]) -> str:
    """Return the message of an embedding that cannot be registered, with its file and the option that renames it."""
    if not embedding.source:
        return str(error)
    same = [other for other in earlier if other.placeholder_token.lower() == embedding.placeholder_token.lower()]
    rename = f'--textual_inversion_weight "{embedding.source}=<token>" chooses another'
    if not same:
        return f"{embedding.source}: {error}; {rename}"
    other = same[0].source or "another embedding"
    if other == embedding.source:
        return f"{other} is given twice, and its placeholder token is {embedding.placeholder_token}; give it once"
    return f"{other} and {embedding.source} have the placeholder token {embedding.placeholder_token}; {rename}"
