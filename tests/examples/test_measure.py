"""The shipped model follows prompts, and textual inversion works on it.

`examples/tiny_sdxl/measure.py` defines the measurements; the model card has the whole table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from examples.tiny_sdxl import measure
from examples.tiny_sdxl.concepts import CONFETTI, HUMBUG, UnseenConcept
from gm.api import Embedding, Toolkit
from tests.project import Once

Check = Callable[[UnseenConcept, Embedding], None]


@pytest.fixture(scope="module")
def before(fast_toolkit: Toolkit, once: Once) -> dict[str, np.ndarray]:
    """Return the distances of the initializer tokens by folder."""

    def make(path: Path) -> None:
        found = {c.folder: measure.distances(fast_toolkit, c, c.initializer_token) for c in measure.CONCEPTS}
        np.savez(path, **found)

    return dict(np.load(once("before.npz", make)))


@pytest.fixture(scope="module")
def assert_trained(fast_toolkit: Toolkit, before: dict[str, np.ndarray]) -> Check:
    def check(target: UnseenConcept, embedding: Embedding) -> None:
        quality = measure.concept_quality(fast_toolkit, target, embedding, before[target.folder])
        assert quality["of"] == 16
        assert quality["halved"] >= 14
        assert quality["backdrop"] >= 0.75  # white and beige are neighbours, and gold spots tint the space between

    return check


def test_prompts_of_held_out_combinations_are_followed(fast_toolkit: Toolkit) -> None:
    accuracy = measure.prompt_accuracy(fast_toolkit, measure.unseen_prompts())
    assert accuracy["shape"] >= 0.9
    assert accuracy["color"] >= 0.9
    assert accuracy["backdrop"] >= 0.9


def test_object_is_trained_and_the_rest_of_the_prompt_is_followed(assert_trained: Check, humbug: Embedding) -> None:
    assert_trained(HUMBUG, humbug)


def test_style_is_trained_and_the_rest_of_the_prompt_is_followed(assert_trained: Check, confetti: Embedding) -> None:
    assert_trained(CONFETTI, confetti)


def test_training_works_in_pynative_mode_with_ten_vectors(toolkit: Toolkit, assert_trained: Check) -> None:
    pynative = dataclasses.replace(toolkit, backend=dataclasses.replace(toolkit.backend, graph=False))
    assert_trained(CONFETTI, measure.train_concept(pynative, CONFETTI, 10))


def test_two_concepts_are_trained_in_one_run(toolkit: Toolkit, assert_trained: Check) -> None:
    for target, embedding in zip(measure.CONCEPTS, measure.train_jointly(toolkit, 4, 150), strict=True):
        assert_trained(target, embedding)


def test_negative_concept_as_negative_prompt_brings_the_concept_nearer(
    toolkit: Toolkit, fast_toolkit: Toolkit, before: dict[str, np.ndarray]
) -> None:
    """The concept is near with the negative concept as negative prompt, and farther without it."""
    embeddings = measure.train_with_negative(toolkit, HUMBUG, 4, 100)
    both = measure.distances(
        fast_toolkit, HUMBUG, HUMBUG.placeholder_token, embeddings, negative_prompt=measure.NEGATIVE
    )
    without = measure.distances(fast_toolkit, HUMBUG, HUMBUG.placeholder_token, embeddings)
    assert (both <= before["humbug"] / 2).sum() >= 14
    assert (both < without).sum() >= 12
