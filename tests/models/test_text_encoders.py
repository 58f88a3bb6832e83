"""gm/models/text_encoders.py against transformers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mindspore import Tensor

from gm.text.tokenizer import END, START, pool_positions
from tests.reference import inputs
from tests.reference.inputs import relative_error

TOLERANCE = 2e-5  # measured: 5e-7

pytestmark = [pytest.mark.reference, pytest.mark.usefixtures("no_grad")]


def encode_clip_l(case, prompts):
    return case.model.conditioner.embedders[0].transformer(Tensor(prompts.ids_1), Tensor(prompts.clip_l)).asnumpy()


def encode_clip_g(case, prompts, position):
    model = case.model.conditioner.embedders[1].model
    hidden, pooled = model(Tensor(prompts.ids_2), Tensor(prompts.clip_g), Tensor(position))
    return hidden.asnumpy(), pooled.asnumpy()


@pytest.mark.parametrize(("count", "num_vectors"), [(1, 1), (3, 2), (2, 0)])
def test_clip_l(case, count, num_vectors):
    prompts = inputs.prompts(case.config, 10 + count, count, num_vectors)
    expected = case.reference.encode_text_1(prompts.ids_1, prompts.clip_l).numpy()
    assert relative_error(encode_clip_l(case, prompts), expected) < TOLERANCE


@pytest.mark.parametrize(("count", "num_vectors"), [(1, 1), (3, 2), (2, 0)])
def test_clip_g_pooled_at_end_of_text(case, count, num_vectors):
    prompts = inputs.prompts(case.config, 20 + count, count, num_vectors)
    hidden, pooled = encode_clip_g(case, prompts, prompts.pool_position)
    expected, pooled_expected = case.reference.encode_text_2(prompts.ids_2, prompts.clip_g, prompts.pool_position)
    assert relative_error(hidden, expected.numpy()) < TOLERANCE
    assert relative_error(pooled, pooled_expected.numpy()) < TOLERANCE


def test_clip_g_pooled_at_the_largest_id_as_in_transformers(case):
    prompts = inputs.prompts(case.config, 30, count=3, num_vectors=2)
    position = pool_positions(prompts.ids_2, "argmax")
    assert (position != prompts.pool_position).all()
    _, pooled = encode_clip_g(case, prompts, position)
    _, expected = case.reference.encode_text_2(prompts.ids_2, prompts.clip_g)
    assert relative_error(pooled, expected.numpy()) < TOLERANCE


def test_both_pooling_rules_agree_with_transformers_without_embedding_vectors(like_base):
    prompts = inputs.prompts(like_base.config, 31, count=3, num_vectors=0)
    position = pool_positions(prompts.ids_2, "end_of_text")
    assert (position == prompts.pool_position).all()
    assert (position == pool_positions(prompts.ids_2, "argmax")).all()
    _, pooled = encode_clip_g(like_base, prompts, position)
    _, expected = like_base.reference.encode_text_2(prompts.ids_2, prompts.clip_g)
    assert relative_error(pooled, expected.numpy()) < TOLERANCE


@pytest.mark.parametrize("name", ["reversed", "like-sd1", "like-sd2"])
def test_output_is_that_of_all_layers_after_the_final_norm(cases, name):
    case, ids = cases(name), [736, 2368, 320]
    prompt = np.array([[START, *ids, END]])
    for number, encoder in enumerate(case.config.text_encoders, 1):
        network = getattr(case.reference, f"text_encoder_{number}")
        expected = network(torch.from_numpy(prompt)).last_hidden_state[0, 1:-1]
        found = case.model.text_encoder_output(encoder, case.model.token_tables()[encoder][ids])
        assert relative_error(found, expected.numpy()) < TOLERANCE
