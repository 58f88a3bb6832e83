"""The shipped model does what it is there for: it draws what it is told, and learns what no word says.

What is counted, and how, stands in `tools/tiny_model/measure.py`; the model card has the whole table.
"""

from __future__ import annotations

import dataclasses

import pytest

from gm.api import Concept, Toolkit
from tools.tiny_model import measure
from tools.tiny_model.concepts import CONFETTI, HUMBUG, Unseen


def test_it_draws_shapes_in_colours_that_it_never_saw_them_in(toolkit: Toolkit) -> None:
    found = measure.drawing(toolkit, measure.unseen_prompts())
    assert found["shape"] >= 0.9
    assert found["colour"] >= 0.9
    assert found["backdrop"] >= 0.9


@pytest.mark.slow
def test_it_learned_the_object_and_other_words_still_count(toolkit: Toolkit, humbug: Concept) -> None:
    assert_learned(toolkit, HUMBUG, humbug)


@pytest.mark.slow
def test_it_learned_the_style_and_other_words_still_count(toolkit: Toolkit, confetti: Concept) -> None:
    assert_learned(toolkit, CONFETTI, confetti)


@pytest.mark.slow
@pytest.mark.parametrize(("thing", "num_vectors"), [(HUMBUG, 1), (CONFETTI, 10)])
def test_it_learns_in_pynative_mode_and_in_other_numbers_of_rows(
    toolkit: Toolkit, thing: Unseen, num_vectors: int
) -> None:
    eager = dataclasses.replace(toolkit, backend=dataclasses.replace(toolkit.backend, graph=False))
    assert_learned(toolkit, thing, measure.learn(eager, thing, num_vectors))


def assert_learned(toolkit: Toolkit, thing: Unseen, concept: Concept) -> None:
    found = measure.learning(toolkit, thing, concept)
    assert found["of"] == 16
    assert found["halved"] >= 14
    assert found["backdrop"] >= 0.75  # white and beige are neighbours, and gold spots tint what is between them
