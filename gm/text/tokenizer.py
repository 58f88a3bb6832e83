"""Prompts to the ids both text encoders read, learned words included.

A placeholder stands for the learned rows of a concept. Its ids follow the vocabulary of CLIP: the first placeholder
registered begins at 49408, the next where that one stops.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import regex

from gm.errors import UserError
from gm.text import bpe
from gm.text.bpe import END, START, VOCABULARY

__all__ = ["END", "START", "VOCABULARY", "Tokenizer", "pool_positions"]


class Tokenizer:
    """CLIP's tokenizer, for texts of `positions` ids, with placeholders."""

    def __init__(self, positions: int = 77) -> None:
        self.positions = positions
        self.placeholders: dict[str, tuple[int, ...]] = {}  # word as registered → its ids
        self._names: dict[str, tuple[int, ...]] = {}  # cleaned name of a placeholder or of one vector → its ids
        self._pattern = self._typed = _pattern(self._names)

    def add_placeholder(self, word: str, num_vectors: int) -> tuple[int, ...]:
        """Register `word` for `num_vectors` learned rows and return their ids.

        Upper and lower case are the same, as everywhere in CLIP. `<t>_1`, `<t>_2`, … name the rows of `<t>` after the
        first, each alone. Raises UserError for a word that cannot be a placeholder or is taken, and for a number of
        rows that no prompt can hold.
        """
        name = _placeholder_name(word)
        if num_vectors < 1:
            raise UserError(f"placeholder {word!r} is given {num_vectors} vectors; give it at least 1")
        if num_vectors > self._room:
            raise UserError(
                f"placeholder {word!r} with {num_vectors} vectors fits in no prompt; give it at most {self._room}"
            )
        first = VOCABULARY + sum(map(len, self.placeholders.values()))
        ids = tuple(range(first, first + num_vectors))
        names = {name: ids} | {f"{name}_{k}": (ids[k],) for k in range(1, num_vectors)}
        self._check_free(word, names)
        self.placeholders[word] = ids
        self._names |= names
        self._pattern = _pattern(self._names)
        # What cleaning changes in a name, it may change in a prompt, too.
        self._typed = _pattern({*self._names, *self.placeholders}, regex.IGNORECASE)
        return ids

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Return where learned words stand in `text` as it was typed: first character, behind the last one."""
        return [found.span() for found in self._typed.finditer(text)]

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, placeholders expanded, of any number, without start and end.

        A placeholder directly followed by its own second vector, `<t> <t>_1`, is taken as expanded by hand already
        and gives its first row only.
        """
        pieces = self._pattern.split(bpe.clean(text))  # text, name, text, name, …, text
        ids = bpe.encode(pieces[0])
        for k in range(1, len(pieces), 2):
            name, gap, following = pieces[k], pieces[k + 1], pieces[k + 2 : k + 3]
            rows = self._names[name]
            by_hand = not gap.strip() and following == [f"{name}_1"]
            ids += rows[:1] if by_hand else rows
            ids += bpe.encode(gap)
        return ids

    def __call__(self, prompts: Sequence[str], padding: int) -> np.ndarray:
        """Return int32 [N, positions]: start, the prompt's ids, end, then `padding` (encoder 1: END, encoder 2: 0).

        A prompt that is too long loses its last ids, as in CLIP. Raises UserError where they are a placeholder's.
        """
        table = np.full((len(prompts), self.positions), padding, np.int32)
        for row, prompt in zip(table, prompts, strict=True):
            ids = self.encode(prompt)
            self._check_kept(prompt, ids)
            framed = [START, *ids[: self._room], END]
            row[: len(framed)] = framed
        return table

    @property
    def _room(self) -> int:
        """Ids a prompt can hold beside start and end."""
        return self.positions - 2

    def _owner(self, number: int) -> str:
        return next(word for word, ids in self.placeholders.items() if number in ids)

    def _check_free(self, word: str, names: dict[str, tuple[int, ...]]) -> None:
        taken = next((name for name in names if name in self._names), None)
        if taken is None:
            return
        other = self._owner(self._names[taken][0])
        if self._names[taken] != self.placeholders[other]:
            raise UserError(f"placeholder {word!r} already names a vector of {other!r}; rename one of them")
        if taken != next(iter(names)):
            raise UserError(f"a vector of placeholder {word!r} would have the name of {other!r}; rename one of them")
        raise UserError(
            f"placeholder {word!r} is registered already, as {other!r} (case is ignored); rename one of them"
        )

    def _check_kept(self, prompt: str, ids: list[int]) -> None:
        cut = next((number for number in ids[self._room :] if number >= VOCABULARY), None)
        if cut is not None:
            word = self._owner(cut)
            excerpt = prompt if len(prompt) <= 60 else prompt[:60] + "…"
            raise UserError(
                f"prompt {excerpt!r} has {len(ids)} tokens, at most {self._room}"
                f" fit and placeholder {word!r} would be cut; shorten the prompt or put {word} nearer to its beginning"
            )


def pool_positions(ids: np.ndarray, rule: str) -> np.ndarray:
    """Return int32 [N]: where in each row of `ids` [N, positions] the pooled text vector is read.

    "end_of_text" is the first end token. "argmax" is the first of the largest ids, which is the same but for rows
    with a placeholder; transformers does that for SDXL, and so do the programs built on it. Raises ValueError for
    another rule and for a row without an end.
    """
    if rule == "argmax":
        return ids.argmax(axis=1).astype(np.int32)
    if rule != "end_of_text":
        raise ValueError(f"no pooling rule {rule!r}")
    is_end = ids == END
    if not is_end.any(axis=1).all():
        raise ValueError(f"a row without the end token {END}")
    return is_end.argmax(axis=1).astype(np.int32)


def _placeholder_name(word: str) -> str:
    """Return `word` cleaned as it will be in a prompt, or raise UserError if it cannot be a placeholder."""
    example = "give it a word such as '<concept>'"
    name = bpe.clean(word)
    if not word.strip():
        raise UserError(f"the placeholder is empty; {example}")
    if not name:
        raise UserError(f"nothing is left of placeholder {word!r} in a cleaned prompt; {example}")
    if regex.search(r"\s", word + name):
        raise UserError(f"placeholder {word!r} holds white space; write one word, such as {'-'.join(name.split())!r}")
    if len(bpe.encode(name)) == 1:
        raise UserError(f"placeholder {word!r} is a single token already; use a new word, such as {f'<{name}>'!r}")
    return name


def _pattern(names: Iterable[str], flags: int = 0) -> regex.Pattern:
    """Return what finds the names in a text, each as a whole: `mytoy` is not in `mytoys`.

    Longest first, so that `<cat>-toy` is not taken for `<cat>`. Of no names it is a pattern that matches nowhere.
    """
    alternatives = [_whole(name) for name in sorted(names, key=len, reverse=True)]
    return regex.compile(f"({'|'.join(alternatives)})" if alternatives else "(?!)", flags)


def _whole(name: str) -> str:
    alphanumeric = r"[\p{L}\p{N}]"
    before = f"(?<!{alphanumeric})" if regex.match(alphanumeric, name[0]) else ""
    after = f"(?!{alphanumeric})" if regex.match(alphanumeric, name[-1]) else ""
    return before + regex.escape(name) + after
