"""Second pass over a prompt: emphasis, the brackets that weight the text inside them.

It runs on the tokens that one sampling step shows, after the choices are resolved (`gm.text.prompt_parser`), because a
choice may supply any part of an emphasis, as in ``(cat:[1.2|1.4])``. Emphasis is not part of the syntax tree: round and
square brackets are matched independently, so they may overlap, as in ``(a [b) c]``.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from gm.errors import UserError
from gm.text.lexer import BREAK, CLOSE_ROUND, CLOSING, COLON, OPEN_ROUND, OPEN_SQUARE, OPENING, Token

MAX_WEIGHT = 1000.0  # a context of that weight still fits into half precision
DEFAULT_FACTORS = {OPEN_ROUND: 1.1, OPEN_SQUARE: 1 / 1.1}
_MAX_QUOTE = 60  # characters of the prompt that an error message repeats


class WeightedText(NamedTuple):
    """A text and its weight; without a weight it is a BREAK, which begins a new chunk."""

    text: str
    weight: float | None


def weighted_texts(tokens: Sequence[Token]) -> Iterator[WeightedText]:
    """Yield the texts of `tokens` with their weights; neighbors of the same weight are joined.

    Raises UserError for a weight beyond ±`MAX_WEIGHT`.
    """
    for weight, group in itertools.groupby(_weighted_tokens(tokens), key=operator.attrgetter("weight")):
        yield WeightedText("".join(part.text for part in group), weight)


def _weighted_tokens(tokens: Sequence[Token]) -> Iterator[WeightedText]:
    """Yield every token that is not part of an emphasis with its weight."""
    factors = _emphasis_factors(tokens)
    # For each kind of bracket, the product of its factors, one entry per bracket open at this token.
    products = {opening: [1.0] for opening in DEFAULT_FACTORS}
    for index, token in enumerate(tokens):
        if index not in factors:
            # Rounded, so that a bracket that cancels another one leaves exactly 1.
            weight = round(products[OPEN_ROUND][-1] * products[OPEN_SQUARE][-1], 6)
            _check_weight(token, weight)
            yield WeightedText(token.text, None if token.kind == BREAK else weight)
        elif token.kind in CLOSING:
            products[token.kind].append(products[token.kind][-1] * factors[index])
        elif token.kind in OPENING:
            products[OPENING[token.kind]].pop()


def _emphasis_factors(tokens: Sequence[Token]) -> dict[int, float]:
    """Return the factor of each emphasis, by the indices of all tokens that are its syntax and not text.

    These are its brackets and, for ``(text:1.3)``, the colon and the number. An opening bracket without a closing one
    is syntax and counts to the end of the prompt; a closing bracket without an opening one is text.
    """
    factors: dict[int, float] = {}
    open_brackets: dict[str, list[int]] = {opening: [] for opening in DEFAULT_FACTORS}
    for index, token in enumerate(tokens):
        if token.kind in CLOSING:
            open_brackets[token.kind].append(index)
            factors[index] = DEFAULT_FACTORS[token.kind]
        elif token.kind in OPENING and open_brackets[OPENING[token.kind]]:
            opening = open_brackets[OPENING[token.kind]].pop()
            factors[index] = factors[opening]
            number = _explicit_weight(tokens, index)
            if number is not None:
                factors |= dict.fromkeys((opening, index - 2, index - 1, index), number)
    return factors


def _explicit_weight(tokens: Sequence[Token], closing: int) -> float | None:
    """Return the weight that stands as ``:number`` before the bracket that closes at `closing`, if there is one."""
    if tokens[closing].kind != CLOSE_ROUND or tokens[closing - 2].kind != COLON:
        return None
    number = tokens[closing - 1].number
    return None if number is None else float(number)


def _check_weight(token: Token, weight: float) -> None:
    # The weight may be infinite or not a number, which fails the comparison, too.
    if token.text.strip() and not abs(weight) <= MAX_WEIGHT:
        raise UserError(
            f"{token.text[:_MAX_QUOTE]!r} in the prompt weighs {weight:g}; keep weights within ±{MAX_WEIGHT:g}"
        )
