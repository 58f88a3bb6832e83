"""Usual norms of tokens: the rule that chooses table or prompts, and vectors that are brought to them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import pytest

from gm.data import templates
from gm.embeddings import io as embedding_io
from gm.embeddings.embedding import Embedding
from gm.errors import UserError
from gm.models.stable_diffusion import StableDiffusion
from gm.runtime.backend import Backend
from gm.text.bpe import START
from gm.text.tokenizer import Tokenizer
from gm.training import setup, token_norms, trainer
from gm.training.trainer import Trainer
from tests.project import Workshop

EAGER = Backend("CPU", graph=False, dtype=ms.float32)
WIDTH = 4


def table(long: dict[int, float], dtype: type = np.float32) -> np.ndarray:
    """Return a token table of norm 0.4, except for the tokens of other norms in `long`."""
    norms = np.full(START + 2, 0.4)
    norms[[*long]] = [*long.values()]
    return (norms[:, None] * np.full((1, WIDTH), WIDTH**-0.5)).astype(dtype)


@pytest.mark.parametrize(
    ("long", "words", "norm", "source"),
    [
        ({}, range(8), 0.4, "mean of the token table"),
        ({0: 0.7, 1: 0.7, 2: 0.7}, range(8), 0.4, "mean of the token table"),  # not twice the mean
        ({0: 9.0}, range(8), 0.4, "mean of the token table"),  # an outlier
        ({0: 9.0, 1: 11.0}, range(8), 10.0, "mean of the words in the prompts that the model knows"),  # a quarter
        (dict.fromkeys(range(8), 10.0), range(8), 10.0, "mean of the words in the prompts that the model knows"),
        ({0: 9.0, 1: 11.0}, (), 0.4, "mean of the token table"),  # no words in the prompts
        ({START: 1e9, START + 1: 1e9}, (), 0.4, "mean of the token table"),  # start and end are no words
    ],
)
def test_the_words_of_the_prompts_count_where_most_of_the_table_was_never_trained(
    long: dict[int, float], words: Any, norm: float, source: str
) -> None:
    found = token_norms.usual_norms({"clip_l": table(long)}, list(words))["clip_l"]
    assert found.norm == pytest.approx(norm, rel=2e-3)
    assert found.source == source


def test_each_encoder_has_a_norm_of_its_own_in_any_precision() -> None:
    tables = {"clip_l": table({}, np.float16), "clip_g": table({0: 20.0, 1: 20.0})}
    norms = token_norms.usual_norms(tables, [0, 1, 2])
    assert [each.norm for each in norms.values()] == pytest.approx([0.4, 20.0], rel=2e-3)


@pytest.mark.parametrize("kind", templates.TEMPLATES)
def test_the_tiny_model_has_the_norm_of_its_words(tiny: StableDiffusion, kind: str) -> None:
    """It has trained all words of some templates, and half of those of others; its table's mean norm is 0.3."""
    tokenizer = Tokenizer(77)
    words = sorted({number for line in templates.TEMPLATES[kind] for number in tokenizer.encode(line)})
    norms = token_norms.usual_norms(tiny.token_tables(), words)
    assert all(9 < each.norm < 14 for each in norms.values()), norms


def prepared(workshop: Workshop, concept: dict[str, Any] | None = None, **training: Any) -> Trainer:
    options = {"optimizer": "direction", "learning_rate": 0.04, **training}
    return trainer.prepare(
        workshop.model, setup.prepare(workshop.config(training=options, concept=concept or {})), EAGER
    )


@pytest.mark.parametrize("scale", ["auto", "mean", "0.5"])
def test_vectors_begin_with_the_norm_and_keep_their_direction(
    workshop: Workshop, scale: str, caplog: pytest.LogCaptureFixture
) -> None:
    plain = prepared(workshop, optimizer="adamw").state.vector_arrays()
    with caplog.at_level(logging.INFO, "gm"):
        run = prepared(workshop, token_scale=scale)
    for encoder, vectors in run.state.vector_arrays().items():
        of_table = np.linalg.norm(workshop.model.token_tables()[encoder][:START], axis=1).mean()
        norm = 0.5 if scale == "0.5" else of_table
        lengths = np.linalg.norm(plain[encoder], axis=1, keepdims=True)
        np.testing.assert_allclose(vectors, plain[encoder] / lengths * norm, rtol=1e-5)
        assert np.array_equal(run.initial_vectors[encoder], vectors)
        source = "--token_scale" if scale == "0.5" else "mean of the token table"
        assert f"{norm:.4g} in {encoder} ({source})" in caplog.text


def test_a_frozen_encoder_keeps_its_vectors(workshop: Workshop) -> None:
    plain = prepared(workshop, optimizer="adamw").state.vector_arrays()
    found = prepared(workshop, learning_rate_clip_l=0.0).state.vector_arrays()
    assert np.array_equal(found["clip_l"], plain["clip_l"])
    assert not np.array_equal(found["clip_g"], plain["clip_g"])


def test_a_vector_without_a_direction_is_named(workshop: Workshop, tmp_path: Path) -> None:
    vectors = {"clip_l": np.ones((2, 16), np.float32), "clip_g": np.ones((2, 24), np.float32)}
    vectors["clip_g"][1] = 0
    embedding_io.save(Embedding("<zero>", vectors), tmp_path / "zero.safetensors")
    with pytest.raises(UserError) as caught:
        prepared(workshop, {"initializer_file": str(tmp_path / "zero.safetensors")})
    assert str(caught.value) == (
        "vector 1 of <toy> is 0 in clip_g and has no direction to begin with; give another --initializer_file or "
        "--initializer_token"
    )
