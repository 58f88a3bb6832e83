r"""Parser of the prompt language: emphasis, chunks, and text that changes from step to step, as in AUTOMATIC1111.

A prompt is parsed in two passes. The first one builds a syntax tree of what depends on the sampling step::

    prompt     = { item }
    item       = text | BREAK | bracket
    bracket    = alternate | scheduled | emphasis
    alternate  = "[" items "|" items { "|" items } "]"      one alternative after the other, one step each
    scheduled  = "[" [ items ":" ] items ":" when "]"       before and after a step; [a::0.4] has nothing after
    emphasis   = "(" items ")" | "[" items "]"              any other pair of brackets
    when       = number                                     below 1 and 1.0: a fraction of the steps; else their count
    text       = { character | escape } | placeholder token
    escape     = "\" ( "\" | "(" | ")" | "[" | "]" | "|" | ":" )

A ``|`` or ``:`` belongs to the innermost pair of brackets around it, round or square. The second pass takes the text
that the tree shows in one step and reads the emphasis in it (`gm.text.emphasis`)::

    (cat:1.3)  weight 1.3        (cat)  1.1      [cat]  1 / 1.1      nested factors multiply

No prompt of this language is a syntax error; syntax that only another program supports is refused
(`gm.text.foreign_syntax`), and its names of embeddings become placeholder tokens first
(`gm.text.embedding_references`), as do placeholder tokens with an adjustment (`gm.text.adjusted_references`). Brackets
match by these rules:

- A closing bracket matches the last open bracket of its kind. Brackets of the other kind that were opened in between
  have no partner in the tree: they are ordinary items of the pair around them.
- A closing bracket of which none is open is text, and so are a ``|`` outside square brackets, a ``:`` that no number
  ends, and a number that is not one.
- In the second pass round and square brackets do not see each other, and an opening bracket without a partner counts to
  the end of the prompt.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from gm.text import adjusted_references, chunks, embedding_references, foreign_syntax
from gm.text.chunks import TokenChunks, WeightedIds
from gm.text.emphasis import weighted_texts
from gm.text.lexer import BAR, CLOSING, COLON, OPEN_SQUARE, OPENING, Token, tokenize
from gm.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class PromptSchedule:
    """The different texts of a prompt, in order of first use and of equally many chunks, and which one a step uses."""

    variants: tuple[TokenChunks, ...]
    by_step: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Alternate:
    """``[a|b|c]``: one alternative after the other, one step each."""

    alternatives: tuple[Items, ...]


@dataclass(frozen=True, eq=False)
class Scheduled:
    """``[a:b:0.4]``: `before` up to step `start`, `after` from that step on."""

    before: Items
    after: Items
    start: int


@dataclass(frozen=True, eq=False)
class Emphasis:
    """A pair of brackets that chooses nothing; the items include the brackets, for the second pass."""

    items: Items


Node = Token | Alternate | Scheduled | Emphasis
Items = tuple[Node, ...]


def parse(prompt: str, tokenizer: Tokenizer, steps: int, weights: bool = True) -> PromptSchedule:
    """Return what `prompt` shows in each of `steps` sampling steps; without `weights` all of it is plain text.

    Placeholder tokens are never syntax, whatever characters they contain. Weights are rounded to six decimals. Raises
    UserError for a weight beyond ±1000, for ``embedding:name`` without such an embedding, for an adjustment that
    `adjusted_references` refuses, and for syntax that only other programs have.
    """
    prompt = embedding_references.resolve(prompt, tokenizer)
    if not weights:
        return PromptSchedule((chunks.encode_literally(prompt, tokenizer),), (0,) * steps)
    prompt = adjusted_references.resolve(prompt, tokenizer)
    foreign_syntax.check(prompt, tokenizer.placeholder_spans(prompt))
    tree = parse_tree(tokenize(prompt, tokenizer), steps)
    encode = functools.cache(tokenizer.encode)

    @functools.cache
    def encode_chunks(tokens: tuple[Token, ...]) -> TokenChunks:
        parts = (
            None if weight is None else WeightedIds(encode(text), weight) for text, weight in weighted_texts(tokens)
        )
        return chunks.split_into_chunks(parts, tokenizer)

    if not _depends_on_step(tree):
        return PromptSchedule((encode_chunks(tuple(tokens_at(tree, 0))),), (0,) * steps)
    texts = [encode_chunks(tuple(tokens_at(tree, step))) for step in range(steps)]
    numbers = {variant: number for number, variant in enumerate(dict.fromkeys(texts))}
    count = max(map(len, numbers))
    variants = tuple(chunks.pad_chunks(variant, count) for variant in numbers)
    return PromptSchedule(variants, tuple(numbers[variant] for variant in texts))


def tokens_at(tree: Items, step: int) -> Iterator[Token]:
    """Yield the tokens that `tree` shows in `step`, counted from 0."""
    stack: list[Node] = [*reversed(tree)]
    while stack:
        node = stack.pop()
        if isinstance(node, Token):
            yield node
        elif isinstance(node, Alternate):
            stack += reversed(node.alternatives[step % len(node.alternatives)])
        elif isinstance(node, Scheduled):
            stack += reversed(node.after if step >= node.start else node.before)
        else:
            stack += reversed(node.items)


def _depends_on_step(tree: Items) -> bool:
    """Return whether there is a choice in `tree`, at any depth."""
    stack = [tree]
    while stack:
        for node in stack.pop():
            if isinstance(node, Alternate | Scheduled):
                return True
            if isinstance(node, Emphasis):
                stack.append(node.items)
    return False


@dataclass
class _OpenBracket:
    """A pair of brackets, or the whole prompt, whose items are being read."""

    items: list[Node] = field(default_factory=list)
    separators: list[int] = field(default_factory=list)  # indices of its own | and : in `items`


def parse_tree(tokens: Sequence[Token], steps: int) -> Items:
    """Return the syntax tree of a prompt; `steps` turns fractions of the steps into step numbers.

    A recursive descent with a stack of its own, because prompts may nest brackets deeper than Python's.
    """
    pairs = _match_brackets(tokens)
    closing_indices = set(pairs.values())
    stack = [_OpenBracket()]
    for index, token in enumerate(tokens):
        if index in pairs:
            stack.append(_OpenBracket())
        if token.kind in (BAR, COLON):
            stack[-1].separators.append(len(stack[-1].items))
        stack[-1].items.append(token)
        if index in closing_indices:
            bracket = stack.pop()
            stack[-1].items.append(_bracket_node(bracket, steps))
    return tuple(stack[0].items)


def _match_brackets(tokens: Sequence[Token]) -> dict[int, int]:
    """Return the indices of the brackets that are closed: opening → closing."""
    pairs: dict[int, int] = {}
    open_brackets: list[int] = []
    open_count: Counter[str] = Counter()
    for index, token in enumerate(tokens):
        if token.kind in CLOSING:
            open_brackets.append(index)
            open_count[token.kind] += 1
        elif token.kind in OPENING and open_count[OPENING[token.kind]]:
            opening = open_brackets.pop()
            while tokens[opening].kind != OPENING[token.kind]:  # opened in between: it has no partner
                open_count[tokens[opening].kind] -= 1
                opening = open_brackets.pop()
            open_count[tokens[opening].kind] -= 1
            pairs[opening] = index
    return pairs


def _bracket_node(bracket: _OpenBracket, steps: int) -> Node:
    """Return the node of a pair of brackets; its items include them."""
    opening, separators = bracket.items[0], bracket.separators
    if isinstance(opening, Token) and opening.kind == OPEN_SQUARE:
        bars = [index for index in separators if _is_token(bracket.items[index], BAR)]
        if bars:
            return Alternate(tuple(_split(bracket.items, bars)))
        number = _trailing_number(bracket)
        if number is not None and len(separators) <= 2:
            *before, after, _ = _split(bracket.items, separators)
            return Scheduled(before[0] if before else (), after, _start_step(number, steps))
    return Emphasis(tuple(bracket.items))


def _is_token(node: Node, kind: str) -> bool:
    return isinstance(node, Token) and node.kind == kind


def _split(items: Sequence[Node], separators: Sequence[int]) -> Iterator[Items]:
    """Yield the items between the brackets, split at the indices `separators`."""
    for start, end in itertools.pairwise([0, *separators, len(items) - 1]):
        yield tuple(items[start + 1 : end])


def _trailing_number(bracket: _OpenBracket) -> str | None:
    """Return the number that is all there is between the last separator of `bracket` and its closing bracket."""
    last = bracket.items[-2]
    if not bracket.separators or bracket.separators[-1] != len(bracket.items) - 3 or not isinstance(last, Token):
        return None
    return last.number


def _start_step(number: str, steps: int) -> int:
    """Return the step at which a `Scheduled` changes, from 0 to `steps`."""
    value = float(number)
    is_fraction = value < 1 or (value == 1 and "." in number)
    start = value * steps if is_fraction else value
    # Rounded to six decimals first: 0.29 of 100 steps are 29, though the product is a little less.
    return int(max(0, min(steps, round(start, 6))))
