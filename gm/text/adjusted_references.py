"""Placeholder tokens with an adjustment of their own in a prompt: `<t>{0.5,0.2}` and `<t>{0.5,0.2,dog}`.

The numbers are α and ρ of `gm.embeddings.adjustment`, the word is the class word in place of the embedding file's. An
adjusted embedding is registered as one more placeholder token, whose name no user writes: its vectors differ from those
of `<t>` from the first layer on. Braces after anything but a placeholder token, and braces that do not begin with a
number, are text.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import regex

from gm.errors import UserError, shorten
from gm.text import embedding_references
from gm.text.tokenizer import Tokenizer

_BRACES = regex.compile(r"\s*\{\s*(?P<values>[-+]?\.?[0-9][^{}|]*)\}")
_EXAMPLE = "0.5,0.2"


class AdjustedReference(NamedTuple):
    """A placeholder token, as it is registered, with α, ρ and class word, "" for the file's, of a place in a prompt."""

    token: str
    alpha: float
    rho: float
    class_word: str = ""

    @property
    def name(self) -> str:
        """Placeholder token of the adjusted embedding. Words stand in it as numbers, as it may hold no white space."""
        word = "-".join(str(ord(character)) for character in self.class_word)
        return f"{self.token}{{{self.alpha!r},{self.rho!r}{',' if word else ''}{word}}}"


def find(prompt: str, tokenizer: Tokenizer) -> list[AdjustedReference]:
    """Return the adjusted references in `prompt`; UserError for numbers that are not α and ρ, from 0 to 1."""
    prompt = embedding_references.resolve(prompt, tokenizer)
    return [reference for _, _, reference in _matches(prompt, tokenizer)]


def resolve(prompt: str, tokenizer: Tokenizer) -> str:
    """Return `prompt` with the placeholder token of the adjusted embedding in place of every adjusted reference.

    Raises UserError as `find` does, and for one that is not registered: a prompt that nothing has looked through.
    """
    pieces, position = [], 0
    for start, end, reference in _matches(prompt, tokenizer):
        if reference.name not in tokenizer.placeholders:
            raise UserError(
                f"{prompt[start:end]} cannot be adjusted here; leave out the braces after {reference.token}"
            )
        pieces += [prompt[position:start], reference.name]
        position = end
    return "".join([*pieces, prompt[position:]])


def adjusted_ids(token: str, tokenizer: Tokenizer) -> set[int]:
    """Return the ids of the vectors of a placeholder token, and of all its adjusted embeddings."""
    return {
        number
        for name, ids in tokenizer.placeholders.items()
        if name == token or (name.startswith(f"{token}{{") and name.endswith("}"))
        for number in ids
    }


def parse_values(values: str, where: str, usage: str) -> tuple[float, float]:
    """Return (α, ρ) of text such as "0.5,0.2"; UserError, which begins with `where` and ends with `usage`."""
    try:
        alpha, rho = (float(part) for part in values.split(","))
    except ValueError as error:
        raise UserError(f"{where} is not two numbers; {usage}") from error
    if not (0 <= alpha <= 1 and 0 <= rho <= 1):
        raise UserError(f"{where} has alpha {alpha:g} and rho {rho:g}; both must be from 0 to 1: {usage}")
    return alpha, rho


def _matches(prompt: str, tokenizer: Tokenizer) -> Iterator[tuple[int, int, AdjustedReference]]:
    """Yield start, end and content of each adjusted reference."""
    for start, end in tokenizer.placeholder_spans(prompt):
        braces = _BRACES.match(prompt, end)
        if braces:
            text = prompt[start : braces.end()]
            yield start, braces.end(), _parse(text, _registered(prompt[start:end], text, tokenizer), braces["values"])


def _parse(text: str, token: str, values: str) -> AdjustedReference:
    numbers, _, rest = values.partition(",")
    rho, _, class_word = rest.partition(",")
    usage = f"write {token}{{{_EXAMPLE}}}, or {token}{{{_EXAMPLE},class word}}"
    alpha_rho = parse_values(f"{numbers},{rho}", f"{shorten(text, 60)} in the prompt", usage)
    return AdjustedReference(token, *alpha_rho, " ".join(class_word.split()))


def _registered(name: str, text: str, tokenizer: Tokenizer) -> str:
    """Return the placeholder token that `name` is, in whatever case; UserError for one of its vectors alone."""
    ids = tuple(tokenizer.encode(name))
    for token, of_token in tokenizer.placeholders.items():
        if of_token == ids:
            return token
    raise UserError(
        f"{shorten(text, 60)} in the prompt adjusts a single vector; write the braces after the whole token"
    )
