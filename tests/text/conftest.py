"""A tokenizer that knows words which look like syntax."""

from __future__ import annotations

import pytest

from gm.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    made = Tokenizer()
    made.add_placeholder("<toy>", 2)
    made.add_placeholder("<a:b|c]>", 1)
    made.add_placeholder("BREAK-dance", 3)
    return made
