"""The shipped model does what it is there for: it draws what it is told, and learns what no word says.

What is counted, and how, stands in `tools/tiny_model/measure.py`; the model card has the whole table.
"""

from __future__ import annotations

from gm.api import Concept, Toolkit
from tools.tiny_model import measure
from tools.tiny_model.concepts import HUMBUG


def test_it_draws_shapes_in_colours_that_it_never_saw_them_in(toolkit: Toolkit) -> None:
    found = measure.drawing(toolkit, measure.unseen_prompts())
    assert found["shape"] >= 0.9
    assert found["colour"] >= 0.9
    assert found["backdrop"] >= 0.9


def test_it_learned_the_object_and_other_words_still_count(toolkit: Toolkit, humbug: Concept) -> None:
    found = measure.learning(toolkit, HUMBUG, humbug)
    assert found["of"] == 16
    assert found["halved"] >= 14
    assert found["backdrop"] >= 0.9
