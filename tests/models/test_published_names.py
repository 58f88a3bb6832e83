"""Our parameters are the published file's tensors, one to one, and frozen."""

from __future__ import annotations

from mindspore import Parameter


def test_reader_uses_every_published_number(any_case):
    """diffusers' reader finds all it wants (asserted on loading) and leaves nothing but the unused logit scale."""
    reference = any_case.reference
    networks = (reference.unet, reference.vae, reference.text_encoder_1, reference.text_encoder_2)
    read = sum(p.numel() for network in filter(None, networks) for p in network.parameters())
    assert read == sum(tensor.size for tensor in any_case.weights.values()) - 1


def test_every_network_has_as_many_numbers_as_the_reference(case):
    def numbers(network):
        return sum(p.size for p in network.get_parameters())

    def theirs(network):
        return sum(p.numel() for p in network.parameters())

    encoder_1, encoder_2 = case.model.conditioner.embedders
    assert numbers(case.model.unet) == theirs(case.reference.unet)
    assert numbers(case.model.first_stage_model) == theirs(case.reference.vae)
    assert numbers(encoder_1) == theirs(case.reference.text_encoder_1)
    assert numbers(encoder_2) == theirs(case.reference.text_encoder_2) + 1  # logit_scale


def test_no_parameter_is_trained(any_case):
    parameters = list(any_case.model.get_parameters())
    assert len(parameters) == len(any_case.weights)
    assert all(isinstance(p, Parameter) for p in parameters)
    assert [p.name for p in parameters if p.requires_grad] == []
    assert any_case.model.trainable_params() == []
