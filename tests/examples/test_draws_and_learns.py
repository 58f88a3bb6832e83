"""The shipped model does what it is there for: it draws what it is told, and learns what no word says.

What is counted, and how, stands in `examples/tiny_sdxl/measure.py`; the model card has the whole table.
"""

from __future__ import annotations

import dataclasses

import pytest

from examples.tiny_sdxl import measure
from examples.tiny_sdxl.concepts import CONFETTI, HUMBUG, Unseen
from gm.api import Embedding, Toolkit


def test_it_draws_shapes_in_colours_that_it_never_saw_them_in(toolkit: Toolkit) -> None:
    found = measure.drawing(toolkit, measure.unseen_prompts())
    assert found["shape"] >= 0.9
    assert found["colour"] >= 0.9
    assert found["backdrop"] >= 0.9


@pytest.mark.slow
def test_it_learned_the_object_and_other_words_still_count(toolkit: Toolkit, humbug: Embedding) -> None:
    assert_learned(toolkit, HUMBUG, humbug)


@pytest.mark.slow
def test_it_learned_the_style_and_other_words_still_count(toolkit: Toolkit, confetti: Embedding) -> None:
    assert_learned(toolkit, CONFETTI, confetti)


@pytest.mark.slow
@pytest.mark.parametrize(("thing", "num_vectors"), [(HUMBUG, 1), (CONFETTI, 10)])
def test_it_learns_in_pynative_mode_and_in_other_numbers_of_rows(
    toolkit: Toolkit, thing: Unseen, num_vectors: int
) -> None:
    eager = dataclasses.replace(toolkit, backend=dataclasses.replace(toolkit.backend, graph=False))
    assert_learned(toolkit, thing, measure.learn(eager, thing, num_vectors))


@pytest.mark.slow
def test_it_learns_both_in_one_run(toolkit: Toolkit) -> None:
    for _, found in measure.together(toolkit, 4):
        assert_good(found)


@pytest.mark.slow
def test_a_word_is_learned_away_from_a_negative_one(toolkit: Toolkit) -> None:
    """What is learned lies in both: the word is near with the negative one in the negative prompt, farther without."""
    words = measure.with_negative(toolkit, HUMBUG, 4, 200)
    before = measure.distances(toolkit, HUMBUG, HUMBUG.initializer)
    both = measure.distances(toolkit, HUMBUG, HUMBUG.word, words, negative_prompt=measure.NEGATIVE)
    without = measure.distances(toolkit, HUMBUG, HUMBUG.word, words)
    assert (both <= before / 2).sum() >= 14
    assert (both < without).sum() >= 12


def assert_learned(toolkit: Toolkit, thing: Unseen, concept: Embedding) -> None:
    assert_good(measure.learning(toolkit, thing, concept))


def assert_good(found: dict[str, float]) -> None:
    assert found["of"] == 16
    assert found["halved"] >= 14
    assert found["backdrop"] >= 0.75  # white and beige are neighbours, and gold spots tint what is between them
