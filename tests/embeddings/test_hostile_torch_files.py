"""PyTorch files that hold something else in place of vectors or metadata: a message of one line."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from gm.embeddings import io as embedding_io
from gm.errors import UserError
from tests.checkpoints.files import little_memory

pytestmark = pytest.mark.reference

T = torch.ones(2, 3)


@pytest.mark.parametrize(
    "tree",
    [
        {"clip_l": "rows", "clip_g": T},
        {"clip_l": 3, "clip_g": [1]},
        {"clip_l": torch.tensor(3.5), "clip_g": T},
        {"clip_l": torch.zeros(0, 3), "clip_g": torch.zeros(0, 3)},
        {"clip_l": T, "clip_g": torch.ones(2, 3, 4)},
        {"clip_l": T, "clip_g": torch.ones(2, 3, dtype=torch.int64)},
        {"clip_l": T, "clip_g": {"a": T}},
        {"emb_params": None},
        {"emb": T, "emb2": T.bool()},
        {"string_to_param": {"*": torch.tensor(3.5)}},
        {"string_to_param": {"_parameters": 3}},
        {"string_to_param": {"_parameters": T}},
        {"string_to_param": {"*": [T]}},
        {"string_to_param": {}},
        {5: T},
        {b"<a>": T},
        {"<a>": T, 5: T},
        OrderedDict({"": 3}),
        3,
        {"clip_l": T, "clip_g": T, "pooling": 3},
        {"clip_l": T, "clip_g": T, "details": 3.5},
        {"clip_l": T, "clip_g": T, "of_words": 3},
        {"clip_l": T, "clip_g": T, "of_words": '{"": []}'},
    ],
)
def test_other_values_in_place_of_vectors_or_metadata_are_refused(tmp_path: Path, tree: Any) -> None:
    torch.save(tree, tmp_path / "a.pt")
    with little_memory(), pytest.raises(UserError) as caught:
        embedding_io.load_all(tmp_path / "a.pt")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(("value", "token"), [("", "my-cat"), (3, "<3>"), ([T], "my-cat"), (None, "my-cat")])
def test_a_placeholder_token_that_is_not_a_string(tmp_path: Path, value: Any, token: str) -> None:
    torch.save({"clip_l": T, "clip_g": T, "placeholder_token": value}, tmp_path / "my-cat.pt")
    assert embedding_io.load(tmp_path / "my-cat.pt").placeholder_token == token
