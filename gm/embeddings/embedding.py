"""A concept: one placeholder word and the rows that both text encoders read for it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gm.config.model import ModelConfig
from gm.errors import UserError
from gm.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Embedding:
    """`clip_l` [n, width 1] and `clip_g` [n, width 2] float32; `pooling` is the rule they were learned under.

    `details` is kept with the file: base model, step, seed, recipe; anything that JSON holds.
    """

    placeholder: str
    clip_l: np.ndarray
    clip_g: np.ndarray
    pooling: str = "end_of_text"
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def num_vectors(self) -> int:
        return len(self.clip_l)


@dataclass(frozen=True)
class LoadedEmbeddings:
    """What the encoders need to read prompts: the tokenizer that knows the placeholders, and all concepts' rows."""

    tokenizer: Tokenizer
    clip_l: np.ndarray
    clip_g: np.ndarray


def safe_filename(word: str) -> str:
    """Return `word` without what the name of a file should not hold; "" if nothing is left."""
    return re.sub(r"[^\w.-]+", "", word).strip("._-")[:64]


def check_dims(concept: Embedding, config: ModelConfig) -> None:
    """Raise UserError if the concept's rows are as wide as another model's."""
    found = concept.clip_l.shape[1], concept.clip_g.shape[1]
    widths = config.text_encoder_1.width, config.text_encoder_2.width
    if found != widths:
        raise UserError(
            f"{concept.placeholder} has rows {found[0]} and {found[1]} wide, the model's are {widths[0]} and "
            f"{widths[1]}: it was learned on another model; use that model's --config and --weight"
        )


def combine(concepts: Sequence[Embedding], config: ModelConfig) -> LoadedEmbeddings:
    """Join any number of concepts.

    Raises UserError if a concept's widths are another model's, or two concepts share a placeholder.
    """
    tokenizer = Tokenizer(config.text_encoder_1.positions)
    for concept in concepts:
        check_dims(concept, config)
        tokenizer.add_placeholder(concept.placeholder, concept.num_vectors)
    # Without a concept there is one row that no id reaches: MindSpore has no empty tensors.
    clip_l = [c.clip_l for c in concepts] or [np.zeros((1, config.text_encoder_1.width), np.float32)]
    clip_g = [c.clip_g for c in concepts] or [np.zeros((1, config.text_encoder_2.width), np.float32)]
    return LoadedEmbeddings(tokenizer, np.concatenate(clip_l), np.concatenate(clip_g))
