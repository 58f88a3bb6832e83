"""Options of training that an embedding file records."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gm.embeddings.embedding import Embedding
from gm.embeddings.training_options import concept_options

CAT, DOG = ({"placeholder_token": f"<{name}>", "initializer_token": name} for name in ("cat", "dog"))


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        (None, {}),
        ("a text", {}),
        ({"concept": 3}, {}),
        ({"concept": CAT}, CAT),
        ({"concept": {**CAT, "concepts": []}}, {**CAT, "concepts": []}),
        ({"concept": {**CAT, "concepts": "a text"}}, {**CAT, "concepts": "a text"}),
        # The one concept of the run, whose token was renamed since.
        ({"concept": {"num_vectors": 2, "concepts": [DOG]}}, {"num_vectors": 2, "concepts": [DOG], **DOG}),
        ({"concept": {"concepts": [DOG, CAT]}}, {"concepts": [DOG, CAT], **CAT}),
        ({"concept": {"num_vectors": 2, "concepts": [DOG, 5]}}, {}),
    ],
)
def test_the_options_of_the_concept_of_this_token(recipe: Any, options: dict[str, Any]) -> None:
    embedding = Embedding("<cat>", {"clip_l": np.zeros((1, 4), np.float32)}, metadata={"recipe": recipe})
    assert concept_options(embedding) == options
