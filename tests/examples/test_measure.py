"""The shipped model follows prompts, and textual inversion works on it.

`examples/tiny_sdxl/measure.py` defines the measurements; the model card has the whole table.
"""

from __future__ import annotations

import dataclasses

import pytest

from examples.tiny_sdxl import measure
from examples.tiny_sdxl.concepts import CONFETTI, HUMBUG, UnseenConcept
from gm.api import Embedding, Toolkit


def test_prompts_of_held_out_combinations_are_followed(toolkit: Toolkit) -> None:
    accuracy = measure.prompt_accuracy(toolkit, measure.unseen_prompts())
    assert accuracy["shape"] >= 0.9
    assert accuracy["color"] >= 0.9
    assert accuracy["backdrop"] >= 0.9


def test_object_is_trained_and_the_rest_of_the_prompt_is_followed(toolkit: Toolkit, humbug: Embedding) -> None:
    assert_trained(toolkit, HUMBUG, humbug)


def test_style_is_trained_and_the_rest_of_the_prompt_is_followed(toolkit: Toolkit, confetti: Embedding) -> None:
    assert_trained(toolkit, CONFETTI, confetti)


@pytest.mark.parametrize(("thing", "num_vectors"), [(HUMBUG, 1), (CONFETTI, 10)])
def test_training_works_in_pynative_mode_and_with_other_numbers_of_vectors(
    toolkit: Toolkit, thing: UnseenConcept, num_vectors: int
) -> None:
    eager = dataclasses.replace(toolkit, backend=dataclasses.replace(toolkit.backend, graph=False))
    assert_trained(toolkit, thing, measure.train_concept(eager, thing, num_vectors))


def test_two_concepts_are_trained_in_one_run(toolkit: Toolkit) -> None:
    for _, quality in measure.joint_training(toolkit, 4):
        assert_good(quality)


def test_negative_concept_as_negative_prompt_brings_the_concept_nearer(toolkit: Toolkit) -> None:
    """The concept is near with the negative concept as negative prompt, and farther without it."""
    embeddings = measure.train_with_negative(toolkit, HUMBUG, 4, 200)
    before = measure.distances(toolkit, HUMBUG, HUMBUG.initializer_token)
    both = measure.distances(toolkit, HUMBUG, HUMBUG.placeholder_token, embeddings, negative_prompt=measure.NEGATIVE)
    without = measure.distances(toolkit, HUMBUG, HUMBUG.placeholder_token, embeddings)
    assert (both <= before / 2).sum() >= 14
    assert (both < without).sum() >= 12


def assert_trained(toolkit: Toolkit, thing: UnseenConcept, embedding: Embedding) -> None:
    assert_good(measure.concept_quality(toolkit, thing, embedding))


def assert_good(quality: dict[str, float]) -> None:
    assert quality["of"] == 16
    assert quality["halved"] >= 14
    assert quality["backdrop"] >= 0.75  # white and beige are neighbours, and gold spots tint what is between them
