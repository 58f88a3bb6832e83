"""Norms of a model's token embeddings, which those of trained vectors are compared with."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gm.config import TrainingConfig
from gm.errors import UserError
from gm.text.bpe import START
from gm.training import lr_schedule
from gm.training.setup import TrainingSetup
from gm.training.train_state import Vectors

log = logging.getLogger("gm")

_LONG = 2.0  # times the mean norm of the table
_LONG_SHARE = 0.25  # of the words in the prompts


@dataclass(frozen=True)
class TokenNorm:
    """The usual norm of a text encoder's tokens, and where it comes from, for messages."""

    norm: float
    source: str


def usual_norms(tables: Mapping[str, np.ndarray], prompt_tokens: Sequence[int]) -> dict[str, TokenNorm]:
    """Return the usual norm of the tokens of each text encoder, from its table [vocabulary, width].

    It is the mean over the table, as in directional textual inversion (Kim et al., 2026, arXiv 2512.13672). Where at
    least a quarter of the words in the prompts, `prompt_tokens`, have more than twice this norm, most of the table was
    never trained, and it is the mean over these words. (Published text encoders have trained all tokens to about one
    norm; a small model was trained on a few words, and its other vectors are short.)
    """
    return {encoder: _usual_norm(table, prompt_tokens) for encoder, table in tables.items()}


def scale_vectors(
    vectors: Vectors, setup: TrainingSetup, tables: Mapping[str, np.ndarray], prompt_tokens: Sequence[int]
) -> Vectors:
    """Return the initial `vectors` with the norm of `--token_scale`, those of frozen text encoders as they are.

    Raises UserError for a vector without a direction.
    """
    training = setup.config.training
    norms = _norms(training, tables, prompt_tokens)
    if not setup.resume_from:
        listed = ", ".join(f"{each.norm:.4g} in {encoder} ({each.source})" for encoder, each in norms.items())
        log.info("--optimizer direction: the norm of the vectors is %s", listed)
    peaks = lr_schedule.peak_learning_rates(training, list(vectors))
    scaled = {}
    for (encoder, array), peak in zip(vectors.items(), peaks, strict=True):
        lengths = np.linalg.norm(array, axis=1, keepdims=True)
        if peak > 0:
            _check_directions(lengths, encoder, setup)
        scaled[encoder] = (array / lengths * norms[encoder].norm).astype(np.float32) if peak > 0 else array
    return scaled


def _norms(
    training: TrainingConfig, tables: Mapping[str, np.ndarray], prompt_tokens: Sequence[int]
) -> dict[str, TokenNorm]:
    if training.token_scale == "auto":
        return usual_norms(tables, prompt_tokens)
    if training.token_scale == "mean":
        return usual_norms(tables, ())
    return dict.fromkeys(tables, TokenNorm(float(training.token_scale), "--token_scale"))


def _usual_norm(table: np.ndarray, prompt_tokens: Sequence[int]) -> TokenNorm:
    norms = np.linalg.norm(table[:START].astype(np.float32, copy=False), axis=1)
    mean = float(norms.mean(dtype=np.float64))
    words = norms[np.asarray(prompt_tokens, np.int64)]
    long = words[words > _LONG * mean]
    if len(long) and len(long) >= _LONG_SHARE * len(words):
        return TokenNorm(float(long.mean(dtype=np.float64)), "mean of the words in the prompts that the model knows")
    return TokenNorm(mean, "mean of the token table")


def _check_directions(lengths: np.ndarray, encoder: str, setup: TrainingSetup) -> None:
    for concept in setup.concepts:
        for number, length in enumerate(lengths[concept.vector_slice, 0]):
            if not length > 0:
                raise UserError(
                    f"vector {number} of {concept.placeholder_token} is 0 in {encoder} and has no direction to begin "
                    "with; give another --initializer_file or --initializer_token"
                )
