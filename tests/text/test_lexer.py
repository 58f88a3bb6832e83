"""Tokens of the prompt language."""

from __future__ import annotations

import pytest

from gm.text.lexer import Token, tokenize
from gm.text.tokenizer import Tokenizer


def text(string: str) -> Token:
    return Token("text", string)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("", []),
        ("a cat", [text("a cat")]),
        ("(a)", [Token("(", "("), text("a"), Token(")", ")")]),
        (
            "[a|b:1]",
            [*(Token("[", "["), text("a"), Token("|", "|"), text("b")), Token(":", ":"), text("1"), Token("]", "]")],
        ),
        (r"\(a\\b\c", [text("("), text("a"), text("\\"), text("b\\c")]),
        ("a BREAK b", [text("a "), Token("BREAK", "BREAK"), text(" b")]),
        ("BREAKING", [text("BREAKING")]),
        ("(<TOY>)", [Token("(", "("), Token("placeholder", "<TOY>"), Token(")", ")")]),
        ("<a:b|c]>|", [Token("placeholder", "<a:b|c]>"), Token("|", "|")]),
    ],
)
def test_tokens(tokenizer: Tokenizer, prompt: str, expected: list[Token]) -> None:
    assert tokenize(prompt, tokenizer) == expected


@pytest.mark.parametrize(
    ("token", "number"),
    [
        (text(" 1.5 "), "1.5"),
        (text("-.5"), "-.5"),
        (text("+2."), "+2."),
        (text("1e3"), None),
        (text("1.2.3"), None),
        (text("."), None),
        (Token("placeholder", "1.5"), None),
    ],
)
def test_number_of_a_token(token: Token, number: str | None) -> None:
    assert token.number == number
