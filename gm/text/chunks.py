"""Ids of any number as chunks that a text encoder takes, each read by itself: start, at most 75 ids, end, padding.

Where a chunk ends follows AUTOMATIC1111 (its options call 20 the "comma padding backtrack").
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from gm.text.tokenizer import END, START, Tokenizer

_COMMA, _BACK = 267, 20  # a full chunk gives what stands behind a comma among its last 20 ids to the next one


@dataclass(frozen=True)
class Chunk:
    """Ids without start and end, and the weight of each."""

    ids: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()


TokenChunks = tuple[Chunk, ...]  # one text, whole
Part = tuple[Sequence[int], float]  # ids and the weight of all of them


def split_into_chunks(parts: Iterable[Part | None], tokenizer: Tokenizer) -> TokenChunks:
    """Return the parts in chunks that `tokenizer.positions` hold, at least one; None begins a new chunk.

    A learned word is not split: if its rows do not fit, all of them move on. A chunk that None would leave empty is
    not begun.
    """
    room = tokenizer.positions - 2
    owners = {number: word for word, rows in tokenizer.placeholders.items() for number in rows}
    full: list[list[tuple[int, float]]] = []
    last: list[tuple[int, float]] = []  # the chunk that is being filled
    for part in parts:
        if part is None:
            if last:
                full.append(last)
                last = []
            continue
        for word in _words(part[0], owners):
            if len(last) + len(word) > room:
                kept = _kept(last, word, room)
                full.append(last[:kept])
                last = last[kept:]
            last += [(number, part[1]) for number in word]
    if last or not full:
        full.append(last)
    return tuple(Chunk(tuple(n for n, _ in chunk), tuple(w for _, w in chunk)) for chunk in full)


def pad_chunks(variant: TokenChunks, count: int) -> TokenChunks:
    """Return `variant` with empty chunks behind its own, so that there are at least `count`."""
    return variant + (Chunk(),) * (count - len(variant))


def to_arrays(chunks: Sequence[Chunk], positions: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return what the encoders take of N chunks: ids_1 and ids_2, int32, and weights, float32, [N, positions] each.

    Encoder 1 pads with the end token, encoder 2 with 0. Start, end and padding weigh 1.
    """
    ids_1, ids_2 = (np.full((len(chunks), positions), padding, np.int32) for padding in (END, 0))
    weights = np.ones((len(chunks), positions), np.float32)
    for row, chunk in enumerate(chunks):
        framed = [START, *chunk.ids, END]
        ids_1[row, : len(framed)] = ids_2[row, : len(framed)] = framed
        weights[row, 1 : len(framed) - 1] = chunk.weights
    return ids_1, ids_2, weights


def _words(ids: Sequence[int], owners: dict[int, str]) -> Iterator[list[int]]:
    """Yield the ids one by one, but rows of one learned word that follow each other together.

    `owners` tells the learned word that an id belongs to.
    """
    word: list[int] = []
    for number in ids:
        goes_on = word and number == word[-1] + 1 and number in owners and owners[number] == owners.get(word[-1])
        if word and not goes_on:
            yield word
            word = []
        word.append(number)
    if word:
        yield word


def _kept(chunk: Sequence[tuple[int, float]], word: Sequence[int], room: int) -> int:
    """Return how many ids stay in a chunk that `word` does not fit in."""
    if word[0] == _COMMA:
        return len(chunk)
    commas = (k for k in range(len(chunk), max(len(chunk) - _BACK, 0), -1) if chunk[k - 1][0] == _COMMA)
    kept = next(commas, len(chunk))
    return kept if len(chunk) - kept + len(word) <= room else len(chunk)
