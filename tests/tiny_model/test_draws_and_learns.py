"""The shipped model does what it is there for: it draws what it is told, and learns what no word says.

Rates and thresholds are the issue of `tools/tiny_model/measure.py`, whose full table is in the model card.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from gm.api import Concept, Toolkit
from tools.tiny_model import measure
from tools.tiny_model.concepts import CONFETTI, HUMBUG, Unseen


def test_it_draws_shapes_in_colours_that_it_never_saw_them_in(toolkit: Toolkit) -> None:
    found = measure.drawing(toolkit, measure.unseen_prompts())
    assert found["shape"] >= 0.8
    assert found["colour"] >= 0.85
    assert found["backdrop"] >= 0.85


@pytest.fixture(scope="module")
def before(toolkit: Toolkit) -> dict[str, np.ndarray]:
    """Return the distances of what the first words draw, seed by seed."""
    return {thing.word: measure.distances(toolkit, thing, thing.initializer) for thing in (HUMBUG, CONFETTI)}


def check(toolkit: Toolkit, thing: Unseen, concept: Concept, before: np.ndarray) -> None:
    after = measure.distances(toolkit, thing, thing.word, [concept])
    assert (after <= before / 2).sum() >= 14
    assert measure.obedience(toolkit, thing, concept) >= 0.75


def test_it_learned_the_object(toolkit: Toolkit, humbug: Concept, before: dict[str, np.ndarray]) -> None:
    check(toolkit, HUMBUG, humbug, before[HUMBUG.word])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("thing", "num_vectors", "graph"),
    [(HUMBUG, 1, True), (HUMBUG, 10, False), (CONFETTI, 4, True), (CONFETTI, 1, False), (CONFETTI, 10, True)],
    ids=lambda value: getattr(value, "word", str(value)),
)
def test_it_learns(
    toolkit: Toolkit, thing: Unseen, num_vectors: int, graph: bool, before: dict[str, np.ndarray]
) -> None:
    there = dataclasses.replace(toolkit, backend=dataclasses.replace(toolkit.backend, graph=graph))
    check(toolkit, thing, measure.learn(there, thing, num_vectors), before[thing.word])
