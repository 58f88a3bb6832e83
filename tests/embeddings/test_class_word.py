"""The class word that the metadata of an embedding file tell."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from gm.embeddings.class_word import class_word
from gm.embeddings.embedding import Embedding


def recipe(**concept: Any) -> dict[str, Any]:
    return {"recipe": {"concept": {"placeholder_token": "<toy>", **concept}}}


ENTRIES = [
    {"placeholder_token": "<a>", "initializer_token": "hat"},
    {"placeholder_token": "<toy>", "initializer_token": "dog", "class_word": None},
]


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({}, ""),
        ({"class_word": "toy", **recipe(initializer_token="cat")}, "toy"),
        (recipe(initializer_token="cat"), "cat"),
        (recipe(initializer_token="orange cat", class_word="cat"), "cat"),
        (recipe(initializer_token=None), ""),
        (recipe(initializer_token="cat", concepts=ENTRIES), "dog"),
        (recipe(initializer_token="cat", concepts=ENTRIES[:1] * 2), ""),
        ({"ot_config": json.dumps({"embedding": {"initial_embedding_text": "plush toy"}})}, "plush toy"),
        ({"ot_config": json.dumps({"embedding": {"initial_embedding_text": "*"}})}, ""),
        ({"ot_config": "not JSON"}, ""),
        ({"class_word": 3, "recipe": "none", "ot_config": "[1]"}, ""),
    ],
)
def test_class_word_of_metadata(metadata: dict[str, Any], expected: str) -> None:
    assert class_word(Embedding("<toy>", {"clip_l": np.zeros((1, 4), np.float32)}, metadata=metadata)) == expected
