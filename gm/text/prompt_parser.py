"""The prompt language: weights, chunks, and words that change from step to step, as AUTOMATIC1111's users write them.

    (cat:1.3)  weighs 1.3        (cat)  1.1      [cat]  1 / 1.1; nested, they multiply
    BREAK      begins a chunk    \\( \\) \\[ \\] \\| \\: \\\\  are the characters themselves
    [a|b|c]    one after the other, a step each
    [a:b:0.4]  a, then b after 0.4 of the steps; [b:0.4] and [a::0.4] have nothing before and after
    [a:b:12]   a, then b after 12 steps: a number of 1 and more, but for 1.0, counts steps

Nothing is an error but a weight that no encoder can follow. A bracket that is never closed counts to the end, one that
was never opened is a character, and so is what only looks like a weight or a number of steps.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from operator import itemgetter
from typing import NamedTuple

from gm.errors import UserError
from gm.text import chunks
from gm.text.chunks import TokenChunks
from gm.text.tokenizer import Tokenizer

HEAVIEST = 1000.0  # a context of that weight still fits into half precision
_EMPHASIS = {"(": 1.1, "[": 1 / 1.1}
_OPENING = {")": "(", "]": "["}
_BREAK = "BREAK"
_SYNTAX = re.compile(rf"\\(?P<character>[\\()\[\]|:])|[()\[\]|:]|\b{_BREAK}\b")
_NUMBER = re.compile(r"\s*([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))\s*")


class _Token(NamedTuple):
    kind: str  # one of ()[]|: or BREAK, or else "text", or "word" of a learned one
    text: str


@dataclass(frozen=True)
class PromptSchedule:
    """The different texts of a prompt, in order of first use and of equally many chunks, and which one a step uses."""

    variants: tuple[TokenChunks, ...]
    by_step: tuple[int, ...]


@dataclass(frozen=True)
class _Choice:
    """A bracket that shows one of its parts in each step."""

    parts: tuple[tuple[int, int], ...]  # each from a token to before another
    end: int  # the closing bracket
    when: int | None  # step from which on it is the second; None is one after the other

    def shown(self, step: int) -> tuple[int, int]:
        return self.parts[step % len(self.parts) if self.when is None else int(step >= self.when)]


def parse(prompt: str, tokenizer: Tokenizer, steps: int, weights: bool = True) -> PromptSchedule:
    """Return what `prompt` says in each of `steps` steps; without `weights` all of it is plain text.

    Learned words are never syntax, whatever characters they hold. Weights are rounded to millionths, so that a bracket
    that takes back another leaves exactly 1. Raises UserError for a weight beyond ±1000.
    """
    if not weights:
        return PromptSchedule((chunks.split_into_chunks([(tokenizer.encode(prompt), 1.0)], tokenizer),), (0,) * steps)
    tokens = [token for token in _tokens(prompt, tokenizer) if token.text]
    choices = _choices(tokens, steps)
    encode = functools.cache(tokenizer.encode)

    @functools.cache
    def variant(shown: tuple[_Token, ...]) -> TokenChunks:
        parts = [part and (encode(part[0]), part[1]) for part in _weighted(shown)]
        return chunks.split_into_chunks(parts, tokenizer)

    texts = [variant(tuple(_shown(tokens, choices, step))) for step in range(steps if choices else 1)]
    numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    count = max(map(len, numbers))
    by_step = tuple(numbers[text] for text in texts) if choices else (0,) * steps
    return PromptSchedule(tuple(chunks.pad_chunks(text, count) for text in numbers), by_step)


def _tokens(prompt: str, tokenizer: Tokenizer) -> Iterator[_Token]:
    """Yield the prompt's syntax and what is between, some of it empty."""
    at = 0
    for first, behind in [*tokenizer.spans(prompt), (len(prompt), len(prompt))]:
        for found in _SYNTAX.finditer(prompt, at, first):
            yield _Token("text", prompt[at : found.start()])
            yield _Token("text", found["character"]) if found["character"] else _Token(found[0], found[0])
            at = found.end()
        yield _Token("text", prompt[at:first])
        yield _Token("word", prompt[first:behind])
        at = behind


def _choices(tokens: Sequence[_Token], steps: int) -> dict[int, _Choice]:
    """Return the brackets that depend on the step, by where they open."""
    pairs = _pairs(tokens)
    ends, choices = set(pairs.values()), {}
    opened: list[tuple[int, list[int]]] = []  # brackets around this place: where each opens, and its own | and :
    for place, token in enumerate(tokens):
        if place in pairs:
            opened.append((place, []))
        elif place in ends:
            first, marks = opened.pop()
            choice = _choice(tokens, [first, *marks, place], steps) if token.kind == "]" else None
            if choice:
                choices[first] = choice
        elif token.kind in ("|", ":") and opened:
            opened[-1][1].append(place)
    return choices


def _pairs(tokens: Sequence[_Token]) -> dict[int, int]:
    """Return where brackets that are closed open → where they close; between the two, none is left half open."""
    pairs, opened, waiting = {}, [], dict.fromkeys(_EMPHASIS, 0)
    for place, token in enumerate(tokens):
        if token.kind in _EMPHASIS:
            opened.append(place)
            waiting[token.kind] += 1
        elif waiting.get(_OPENING.get(token.kind, "")):
            while True:
                first = opened.pop()
                waiting[tokens[first].kind] -= 1
                if tokens[first].kind == _OPENING[token.kind]:
                    break
            pairs[first] = place
    return pairs


def _choice(tokens: Sequence[_Token], marks: Sequence[int], steps: int) -> _Choice | None:
    """Return what a square bracket chooses from, of its `marks`: where it opens, has | and :, and closes."""
    first, *inner, end = marks
    bars = [place for place in inner if tokens[place].kind == "|"]
    if bars:
        return _Choice(tuple((a + 1, b) for a, b in pairwise([first, *bars, end])), end, None)
    if len(inner) not in (1, 2):
        return None
    number = _number(tokens, inner[-1], end)
    if number is None:
        return None
    value = float(number)
    when = value * steps if value < 1 or (value == 1 and "." in number) else value
    # Rounded first: 0.29 of 100 steps are 29, though the product is a little less.
    when = max(0, min(steps, round(when, 6)))
    *before, after = ((a + 1, b) for a, b in pairwise([first, *inner]))
    return _Choice((before[0] if before else (end, end), after), end, int(when))


def _number(tokens: Sequence[_Token], colon: int, end: int) -> str | None:
    """Return the number that is all there is between a colon and a closing bracket, if it is one."""
    if end - colon != 2 or tokens[colon].kind != ":" or tokens[colon + 1].kind != "text":
        return None
    found = _NUMBER.fullmatch(tokens[colon + 1].text)
    return found[1] if found else None


def _shown(tokens: Sequence[_Token], choices: dict[int, _Choice], step: int) -> Iterator[_Token]:
    """Yield the tokens that the choices leave in `step`, counted from 0."""
    place, parts = 0, [(len(tokens), len(tokens))]  # of the parts around this place: where each ends, what follows it
    while place < len(tokens):
        if place == parts[-1][0]:
            place = parts.pop()[1]
        elif place in choices:
            choice = choices[place]
            place, behind = choice.shown(step)
            parts.append((behind, choice.end + 1))
        else:
            yield tokens[place]
            place += 1


def _weighted(tokens: Sequence[_Token]) -> Iterator[tuple[str, float] | None]:
    """Yield texts with their weights, neighbours of one weight together, and None where a chunk begins."""
    for weight, together in groupby(_pieces(tokens), key=itemgetter(1)):
        yield None if weight is None else ("".join(text for text, _ in together), weight)


def _pieces(tokens: Sequence[_Token]) -> Iterator[tuple[str, float | None]]:
    """Yield every text with its weight, and BREAK with None."""
    marks = _emphasis(tokens)
    products = {opening: [1.0] for opening in _EMPHASIS}  # of the brackets around a place
    for place, token in enumerate(tokens):
        if place not in marks:
            weight = round(products["("][-1] * products["["][-1], 6)
            if token.text.strip() and not abs(weight) <= HEAVIEST:  # it may be no number
                raise UserError(
                    f"{token.text[:60]!r} in the prompt weighs {weight:g}; keep weights within ±{HEAVIEST:g}"
                )
            yield token.text, None if token.kind == _BREAK else weight
        elif token.kind in _EMPHASIS:
            products[token.kind].append(products[token.kind][-1] * marks[place])
        elif token.kind in _OPENING:
            products[_OPENING[token.kind]].pop()


def _emphasis(tokens: Sequence[_Token]) -> dict[int, float]:
    """Return the tokens that are no text: brackets with their factors, colons and numbers of weights.

    Round and square brackets do not look at each other. One that is not closed counts to the end.
    """
    marks: dict[int, float] = {}
    opened: dict[str, list[int]] = {opening: [] for opening in _EMPHASIS}
    for place, token in enumerate(tokens):
        if token.kind in _EMPHASIS:
            opened[token.kind].append(place)
            marks[place] = _EMPHASIS[token.kind]
        elif opened.get(_OPENING.get(token.kind, "")):
            first = opened[_OPENING[token.kind]].pop()
            number = _number(tokens, place - 2, place) if token.kind == ")" else None
            marks[place] = marks[first]
            if number is not None:
                marks |= dict.fromkeys((first, place - 2, place - 1, place), float(number))
    return marks
