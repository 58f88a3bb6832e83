"""gm/embeddings/embedding.py: embeddings combined for the text encoders of a model."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from gm.config.model import ModelConfig
from gm.config.networks import TextEncoderConfig, UNetConfig
from gm.embeddings.embedding import Embedding, combine
from gm.errors import UserError
from tests.embeddings.samples import random_embedding

CONFIG = ModelConfig(
    text_encoder_1=TextEncoderConfig(width=16, layers=2, heads=2),
    text_encoder_2=TextEncoderConfig(width=24, layers=2, heads=2),
    unet=UNetConfig(context_dim=40, adm_in_channels=72),
)


def test_combined_embeddings_keep_their_vectors_at_their_token_ids() -> None:
    one, two = random_embedding("<one>", 2, 1), random_embedding("<two>", 3, 2)
    combined = combine([one, two], CONFIG)
    ids = combined.tokenizer.encode("<two> and <one>")
    vectors = combined.vectors["clip_l"][[i - 49408 for i in ids if i >= 49408]]
    assert np.array_equal(vectors, np.concatenate([two.vectors["clip_l"], one.vectors["clip_l"]]))
    assert combined.vectors["clip_g"].shape == (5, 24)


def test_no_embedding_means_no_placeholder_token() -> None:
    combined = combine([], CONFIG)
    assert combined.tokenizer.placeholders == {}
    assert combined.vectors["clip_l"].shape == (1, 16)


def test_embeddings_with_one_placeholder_token_are_refused() -> None:
    with pytest.raises(UserError, match="<TOY>"):
        combine([random_embedding("<toy>"), random_embedding("<TOY>")], CONFIG)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (
            ("mytoy", "a.ckpt"),
            ("MYTOY", "b.ckpt"),
            r"a.ckpt and b.ckpt have the placeholder token MYTOY; --textual_inv",
        ),
        (("mytoy", "a.ckpt"), ("mytoy", "a.ckpt"), "a.ckpt is given twice, and its placeholder token is mytoy"),
        (("<t>", "a.ckpt"), ("<t>_1", "b.ckpt"), r'b.ckpt: placeholder .*; .*"b.ckpt=<token>" chooses another'),
        (("<t>", "a.ckpt"), ("a b", "b.ckpt"), r"b.ckpt: placeholder 'a b' contains white space.*\"b.ckpt=<token>\""),
        (("<t>", "a.ckpt"), ("cat", "b.ckpt"), r"b.ckpt: placeholder 'cat' is a single token.*\"b.ckpt=<token>\""),
    ],
)
def test_the_files_of_placeholder_tokens_that_cannot_be_are_named(
    first: tuple[str, str], second: tuple[str, str], message: str
) -> None:
    embeddings = [
        dataclasses.replace(random_embedding(token), source=source, placeholder_token=token)
        for token, source in (first, second)
    ]
    with pytest.raises(UserError, match=message):
        combine(embeddings, CONFIG)


def test_the_name_of_the_file_calls_an_embedding() -> None:
    embedding = dataclasses.replace(random_embedding("<toy>"), source="a/My Toy.safetensors")
    assert combine([embedding], CONFIG).tokenizer.file_names == {"<toy>": "My Toy"}


def test_an_embedding_of_another_model_is_refused() -> None:
    other = Embedding("<toy>", {"clip_l": np.zeros((1, 768), np.float32), "clip_g": np.zeros((1, 1280), np.float32)})
    with pytest.raises(UserError, match=r"vectors of 768 and 1280 values, the model's have 16 and 24: .*another model"):
        combine([other], CONFIG)
