"""A tokenizer with placeholder tokens that look like syntax."""

from __future__ import annotations

import pytest

from gm.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    tokenizer = Tokenizer()
    tokenizer.add_placeholder("<toy>", 2)
    tokenizer.add_placeholder("<a:b|c]>", 1)
    tokenizer.add_placeholder("BREAK-dance", 3)
    return tokenizer
