"""Lexer of the prompt language: a prompt → tokens.

Tokens that mean something to the parser are the six characters ``( ) [ ] | :`` and the word ``BREAK``. Everything else
is text: an escaped character, a run of ordinary characters between two other tokens, or a placeholder token. The text
of a placeholder token is never syntax, whatever characters it contains.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from gm.text.tokenizer import Tokenizer

OPEN_ROUND, CLOSE_ROUND = "(", ")"
OPEN_SQUARE, CLOSE_SQUARE = "[", "]"
BAR, COLON = "|", ":"
BREAK = "BREAK"
TEXT, PLACEHOLDER = "text", "placeholder"

OPENING = {CLOSE_ROUND: OPEN_ROUND, CLOSE_SQUARE: OPEN_SQUARE}
CLOSING = {OPEN_ROUND: CLOSE_ROUND, OPEN_SQUARE: CLOSE_SQUARE}

_SYNTAX = re.compile(rf"\\(?P<escaped>[\\()\[\]|:])|[()\[\]|:]|\b{BREAK}\b")
_NUMBER = re.compile(r"\s*([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))\s*")


class Token(NamedTuple):
    """A token: its kind, which for syntax is the syntax itself, and its text, never empty."""

    kind: str
    text: str

    @property
    def number(self) -> str | None:
        """The number that is all of this token, as it is written, or None. A placeholder token is never a number."""
        match = _NUMBER.fullmatch(self.text) if self.kind == TEXT else None
        return match[1] if match else None


def tokenize(prompt: str, tokenizer: Tokenizer) -> list[Token]:
    """Return the tokens of `prompt`; joined, their texts are the prompt without the backslashes of its escapes."""
    return [token for token in _scan(prompt, tokenizer) if token.text]


def _scan(prompt: str, tokenizer: Tokenizer) -> Iterator[Token]:
    """Yield the tokens of `prompt`, some of them empty."""
    position = 0
    for start, end in [*tokenizer.placeholder_spans(prompt), (len(prompt), len(prompt))]:
        for match in _SYNTAX.finditer(prompt, position, start):
            yield Token(TEXT, prompt[position : match.start()])
            yield Token(TEXT, match["escaped"]) if match["escaped"] else Token(match[0], match[0])
            position = match.end()
        yield Token(TEXT, prompt[position:start])
        yield Token(PLACEHOLDER, prompt[start:end])
        position = end
