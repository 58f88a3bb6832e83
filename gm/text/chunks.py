"""Chunks of token ids: sequences that a text encoder takes one by one: start, at most 75 ids, end, padding.

Where a chunk ends follows AUTOMATIC1111, whose option for it is called "comma padding backtrack" (20 tokens).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from gm.text.tokenizer import END, PADDING_IDS, START, Tokenizer

_COMMA = 267  # the id of ","
_COMMA_BACKTRACK = 20  # a full chunk ends after a comma among its last 20 ids; the ids after it begin the next chunk


@dataclass(frozen=True)
class Chunk:
    """Token ids without start and end, and the weight of each."""

    ids: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()


TokenChunks = tuple[Chunk, ...]  # one whole text


class WeightedIds(NamedTuple):
    """Token ids that share a weight."""

    ids: Sequence[int]
    weight: float


def split_into_chunks(parts: Iterable[WeightedIds | None], tokenizer: Tokenizer) -> TokenChunks:
    """Return the ids of `parts` in chunks that fit `tokenizer.context_length`, at least one; None begins a new chunk.

    The embedding vectors of a placeholder token stay together: if they do not fit, all of them move to the next chunk,
    and nothing else does, as in AUTOMATIC1111. A None does not leave an empty chunk behind.
    """
    max_ids = tokenizer.context_length - 2
    placeholder_of = {number: token for token, ids in tokenizer.placeholders.items() for number in ids}
    full: list[list[tuple[int, float]]] = []
    current: list[tuple[int, float]] = []
    for part in parts:
        if part is None:
            if current:
                full.append(current)
                current = []
            continue
        for unit in _units(part.ids, placeholder_of):
            if len(current) == max_ids:
                length = len(current) if unit[0] == _COMMA else _length_to_comma(current)
                full.append(current[:length])
                current = current[length:]
            if len(current) + len(unit) > max_ids:
                full.append(current)
                current = []
            current += [(number, part.weight) for number in unit]
    if current or not full:
        full.append(current)
    return tuple(Chunk(tuple(n for n, _ in chunk), tuple(w for _, w in chunk)) for chunk in full)


def encode_literally(text: str, tokenizer: Tokenizer) -> TokenChunks:
    """Return the chunks of a text in which brackets and `BREAK` are ordinary text, all with weight 1."""
    return split_into_chunks([WeightedIds(tokenizer.encode(text), 1.0)], tokenizer)


def pad_chunks(text: TokenChunks, count: int) -> TokenChunks:
    """Return `text` with empty chunks after its own, so that there are at least `count`."""
    return text + (Chunk(),) * (count - len(text))


def to_arrays(chunks: Sequence[Chunk], context_length: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return N chunks as the text encoders take them: the ids, by encoder name, and the weights.

    Ids are int32, weights float32, all [N, context_length]. The encoders differ in the id that they pad with. Start,
    end and padding have weight 1.
    """
    shape = (len(chunks), context_length)
    ids = {encoder: np.full(shape, padding_id, np.int32) for encoder, padding_id in PADDING_IDS.items()}
    weights = np.ones(shape, np.float32)
    for row, chunk in enumerate(chunks):
        with_markers = [START, *chunk.ids, END]
        for encoder_ids in ids.values():
            encoder_ids[row, : len(with_markers)] = with_markers
        weights[row, 1 : len(with_markers) - 1] = chunk.weights
    return ids, weights


def _units(ids: Sequence[int], placeholder_of: dict[int, str]) -> Iterator[list[int]]:
    """Yield the ids one by one, but consecutive embedding vectors of one placeholder token together.

    `placeholder_of` is the placeholder token that an id belongs to.
    """
    unit: list[int] = []
    for number in ids:
        continues = (
            unit
            and number == unit[-1] + 1
            and number in placeholder_of
            and placeholder_of[number] == placeholder_of.get(unit[-1])
        )
        if unit and not continues:
            yield unit
            unit = []
        unit.append(number)
    if unit:
        yield unit


def _length_to_comma(chunk: Sequence[tuple[int, float]]) -> int:
    """Return how many ids of a full chunk stay in it: those up to its last comma, if that is near, or all."""
    earliest = max(len(chunk) - _COMMA_BACKTRACK, 0)
    after_comma = (k for k in range(len(chunk), earliest, -1) if chunk[k - 1][0] == _COMMA)
    return next(after_comma, len(chunk))
