"""The parameters of our networks are the published file's tensors, one to one, and frozen."""

from __future__ import annotations

import pytest
from mindspore import Parameter


@pytest.mark.reference
def test_diffusers_loads_every_published_value(any_case):
    """diffusers' loader finds every tensor (asserted on loading) and ignores only the unused logit scale."""
    reference = any_case.reference
    networks = (reference.unet, reference.vae, reference.text_encoder_1, reference.text_encoder_2)
    loaded = sum(p.numel() for network in filter(None, networks) for p in network.parameters())
    assert loaded == sum(tensor.size for tensor in any_case.weights.values()) - 1


@pytest.mark.reference
def test_every_network_has_as_many_values_as_the_reference(case):
    def ours(network):
        return sum(p.size for p in network.get_parameters())

    def theirs(network):
        return sum(p.numel() for p in network.parameters())

    encoder_1, encoder_2 = case.model.conditioner.embedders
    assert ours(case.model.unet) == theirs(case.reference.unet)
    assert ours(case.model.first_stage_model) == theirs(case.reference.vae)
    assert ours(encoder_1) == theirs(case.reference.text_encoder_1)
    assert ours(encoder_2) == theirs(case.reference.text_encoder_2) + 1  # logit_scale


def test_every_parameter_is_frozen(any_case):
    parameters = list(any_case.model.get_parameters())
    assert len(parameters) == len(any_case.weights)
    assert all(isinstance(p, Parameter) for p in parameters)
    assert [p.name for p in parameters if p.requires_grad] == []
    assert any_case.model.trainable_params() == []
