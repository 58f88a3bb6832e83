"""Ids of a few words, and tokenizers with placeholder tokens."""

from __future__ import annotations

from gm.text.tokenizer import Tokenizer

A, PHOTO, OF, CAT = 320, 1125, 539, 2368


def with_placeholders(**num_vectors: int) -> Tokenizer:
    tokenizer = Tokenizer()
    for name, number in num_vectors.items():
        tokenizer.add_placeholder(f"<{name}>", number)
    return tokenizer
