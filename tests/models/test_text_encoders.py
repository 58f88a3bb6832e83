"""gm/models/text_encoders.py against transformers."""

from __future__ import annotations

import pytest
from mindspore import Tensor

from gm.text.tokenizer import pool_positions
from tests.reference import inputs
from tests.reference.inputs import relative_error

TOLERANCE = 2e-5  # measured: 5e-7

pytestmark = pytest.mark.usefixtures("no_grad")


def encode_1(case, prompts):
    return case.model.conditioner.embedders[0].transformer(Tensor(prompts.ids_1), Tensor(prompts.clip_l)).asnumpy()


def encode_2(case, prompts, position):
    model = case.model.conditioner.embedders[1].model
    hidden, pooled = model(Tensor(prompts.ids_2), Tensor(prompts.clip_g), Tensor(position))
    return hidden.asnumpy(), pooled.asnumpy()


@pytest.mark.parametrize(("count", "learned"), [(1, 1), (3, 2), (2, 0)])
def test_encoder_1(case, count, learned):
    prompts = inputs.prompts(case.config, 10 + count, count, learned)
    expected = case.reference.encode_text_1(prompts.ids_1, prompts.clip_l).numpy()
    assert relative_error(encode_1(case, prompts), expected) < TOLERANCE


@pytest.mark.parametrize(("count", "learned"), [(1, 1), (3, 2), (2, 0)])
def test_encoder_2_pooled_at_end_of_text(case, count, learned):
    prompts = inputs.prompts(case.config, 20 + count, count, learned)
    hidden, pooled = encode_2(case, prompts, prompts.pool_position)
    expected, pooled_expected = case.reference.encode_text_2(prompts.ids_2, prompts.clip_g, prompts.pool_position)
    assert relative_error(hidden, expected.numpy()) < TOLERANCE
    assert relative_error(pooled, pooled_expected.numpy()) < TOLERANCE


def test_pooled_at_the_largest_id_as_transformers_does(case):
    prompts = inputs.prompts(case.config, 30, count=3, learned=2)
    position = pool_positions(prompts.ids_2, "argmax")
    assert (position != prompts.pool_position).all()
    _, pooled = encode_2(case, prompts, position)
    _, expected = case.reference.encode_text_2(prompts.ids_2, prompts.clip_g)
    assert relative_error(pooled, expected.numpy()) < TOLERANCE


def test_both_rules_agree_with_transformers_without_learned_words(like_base):
    prompts = inputs.prompts(like_base.config, 31, count=3, learned=0)
    position = pool_positions(prompts.ids_2, "end_of_text")
    assert (position == prompts.pool_position).all()
    assert (position == pool_positions(prompts.ids_2, "argmax")).all()
    _, pooled = encode_2(like_base, prompts, position)
    _, expected = like_base.reference.encode_text_2(prompts.ids_2, prompts.clip_g)
    assert relative_error(pooled, expected.numpy()) < TOLERANCE
