"""CLIP's tokenizer with placeholder tokens: prompts → the token ids that the text encoders take.

A placeholder token stands for the embedding vectors of a concept. The ids of these vectors follow CLIP's vocabulary:
the first placeholder token registered begins at 49408, the next one where that one ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import regex

from gm.errors import UserError
from gm.text import bpe
from gm.text.bpe import END, START, VOCAB_SIZE

__all__ = ["END", "PADDING_IDS", "START", "VOCAB_SIZE", "Tokenizer", "check_placeholder", "pool_positions"]

# Padding after the end of a prompt that a text encoder was trained with.
PADDING_IDS = {"clip_l": END, "clip_g": 0, "clip_h": 0}
_MAX_QUOTE = 60  # characters of a prompt that an error message repeats
_MAX_PLACEHOLDER = 256  # characters, as many as the name of a file; cleaning a name of a megabyte takes seconds
# Control characters, halves of characters, and those that reverse the text around them on a page.
_UNPRINTABLE = regex.compile(r"[\p{Cc}\p{Cs}\u200e\u200f\u202a-\u202e\u2066-\u2069]")


class Tokenizer:
    """CLIP's tokenizer for prompts of `context_length` ids, with placeholder tokens."""

    def __init__(self, context_length: int = 77) -> None:
        self.context_length = context_length
        self.placeholders: dict[str, tuple[int, ...]] = {}  # placeholder token as registered → its ids
        self.file_names: dict[str, str] = {}  # placeholder token → name of its embedding file, where that is known
        self._names: dict[str, tuple[int, ...]] = {}  # cleaned name of a placeholder token or one vector → its ids
        self._pattern = _name_pattern(self._names)
        self._raw_pattern = self._pattern  # for text that is not cleaned

    def add_placeholder(self, placeholder_token: str, num_vectors: int, file_name: str = "") -> tuple[int, ...]:
        """Register `placeholder_token` for `num_vectors` embedding vectors and return their ids.

        Upper and lower case are the same, as everywhere in CLIP. `<t>_1`, `<t>_2`, … name the vectors of `<t>` after
        the first one, each by itself, as in diffusers. ComfyUI's `embedding:file_name` names it, too
        (`gm.text.embedding_references`). Raises UserError for a string that cannot be a placeholder token or is taken,
        and for more vectors than fit into a prompt.
        """
        name = check_placeholder(placeholder_token)
        if num_vectors < 1:
            raise UserError(f"placeholder {placeholder_token!r} has {num_vectors} vectors; it must have at least 1")
        if num_vectors > self._max_ids:
            raise UserError(
                f"placeholder {placeholder_token!r} with {num_vectors} vectors fits in no prompt; "
                f"give it at most {self._max_ids}"
            )
        first = VOCAB_SIZE + sum(map(len, self.placeholders.values()))
        ids = tuple(range(first, first + num_vectors))
        names = {name: ids} | {f"{name}_{k}": (ids[k],) for k in range(1, num_vectors)}
        self._check_names_are_free(placeholder_token, names)
        self.placeholders[placeholder_token] = ids
        if file_name:
            self.file_names[placeholder_token] = file_name
        self._names |= names
        self._pattern = _name_pattern(self._names)
        # A prompt that is not cleaned may contain a placeholder token as it was registered or as it is cleaned.
        self._raw_pattern = _name_pattern({*self._names, *self.placeholders}, regex.IGNORECASE)
        return ids

    def placeholder_spans(self, prompt: str) -> list[tuple[int, int]]:
        """Return where placeholder tokens stand in `prompt`, which is not cleaned: (start, end) of each."""
        return [match.span() for match in self._raw_pattern.finditer(prompt)]

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, of any number, without start and end; a placeholder token gives all its ids.

        A placeholder token directly followed by its own second vector, `<t> <t>_1`, is taken as expanded by hand and
        gives its first id only.
        """
        pieces = self._pattern.split(bpe.clean_text(text))  # text, name, text, name, …, text
        ids = bpe.encode(pieces[0])
        for k in range(1, len(pieces), 2):
            name, following_text, following_name = pieces[k], pieces[k + 1], pieces[k + 2 : k + 3]
            is_expanded = not following_text.strip() and following_name == [f"{name}_1"]
            ids += self._names[name][:1] if is_expanded else self._names[name]
            ids += bpe.encode(following_text)
        return ids

    def __call__(self, prompts: Sequence[str], padding: int) -> np.ndarray:
        """Return int32 [N, context_length]: start, the prompt's ids, end, then the id `padding` (see `PADDING_IDS`).

        A prompt that is too long is truncated, as in CLIP. Raises UserError if that would cut a placeholder token.
        """
        table = np.full((len(prompts), self.context_length), padding, np.int32)
        for row, prompt in zip(table, prompts, strict=True):
            ids = self.encode(prompt)
            self._check_truncation(prompt, ids)
            with_markers = [START, *ids[: self._max_ids], END]
            row[: len(with_markers)] = with_markers
        return table

    @property
    def _max_ids(self) -> int:
        """Ids that fit into a prompt between start and end."""
        return self.context_length - 2

    def _placeholder_of(self, number: int) -> str:
        return next(token for token, ids in self.placeholders.items() if number in ids)

    def _check_names_are_free(self, placeholder_token: str, names: dict[str, tuple[int, ...]]) -> None:
        duplicate = next((name for name in names if name in self._names), None)
        if duplicate is None:
            return
        other = self._placeholder_of(self._names[duplicate][0])
        if self._names[duplicate] != self.placeholders[other]:
            raise UserError(
                f"placeholder {placeholder_token!r} already names a vector of {other!r}; rename one of them"
            )
        if duplicate != next(iter(names)):
            raise UserError(
                f"a vector of placeholder {placeholder_token!r} would have the name of {other!r}; rename one of them"
            )
        raise UserError(
            f"placeholder {placeholder_token!r} is registered already, as {other!r} (case is ignored); "
            "rename one of them"
        )

    def _check_truncation(self, prompt: str, ids: list[int]) -> None:
        cut = next((number for number in ids[self._max_ids :] if number >= VOCAB_SIZE), None)
        if cut is not None:
            token = self._placeholder_of(cut)
            excerpt = prompt if len(prompt) <= _MAX_QUOTE else prompt[:_MAX_QUOTE] + "…"
            raise UserError(
                f"prompt {excerpt!r} has {len(ids)} tokens, at most {self._max_ids} fit and placeholder {token!r} "
                f"would be cut; shorten the prompt or put {token} nearer to its beginning"
            )


def pool_positions(ids: np.ndarray, rule: str) -> np.ndarray:
    """Return int32 [N]: the position in each prompt of `ids` [N, context_length] whose hidden state is pooled.

    "end_of_text" is the first end token. "argmax" is the first of the largest ids, which differs only for prompts with
    a placeholder token; transformers does that for SDXL, and so do the programs built on it. Raises ValueError for
    another rule and for a prompt without an end token.
    """
    if rule == "argmax":
        return ids.argmax(axis=1).astype(np.int32)
    if rule != "end_of_text":
        raise ValueError(f"unknown pooling rule {rule!r}")
    is_end = ids == END
    if not is_end.any(axis=1).all():
        raise ValueError(f"a prompt without the end token {END}")
    return is_end.argmax(axis=1).astype(np.int32)


def check_placeholder(placeholder_token: str) -> str:
    """Return `placeholder_token` as cleaning leaves it in a prompt; UserError if it cannot be a placeholder token."""
    example = "choose a string such as '<concept>'"
    check_length(placeholder_token)
    name = bpe.clean_text(placeholder_token)
    if not placeholder_token.strip():
        raise UserError(f"the placeholder is empty; {example}")
    if not name:
        raise UserError(f"nothing is left of placeholder {placeholder_token!r} in a cleaned prompt; {example}")
    if regex.search(r"\s", placeholder_token + name):
        suggestion = "-".join(name.split())
        raise UserError(
            f"placeholder {placeholder_token!r} contains white space; write it as one word, such as {suggestion!r}"
        )
    if has_unprintable(placeholder_token):
        raise UserError(f"placeholder {placeholder_token!r} contains characters that cannot be printed; {example}")
    if len(bpe.encode(name)) == 1:
        raise UserError(
            f"placeholder {placeholder_token!r} is a single token already; choose another, such as {f'<{name}>'!r}"
        )
    return name


def check_length(placeholder_token: str) -> None:
    """Raise UserError for a string that is too long for a placeholder token."""
    if len(placeholder_token) > _MAX_PLACEHOLDER:
        raise UserError(
            f"placeholder {placeholder_token[:_MAX_QUOTE]!r}… has {len(placeholder_token)} characters, at most "
            f"{_MAX_PLACEHOLDER} are possible; choose a string such as '<concept>'"
        )


def has_unprintable(placeholder_token: str) -> bool:
    """Return whether a string has control characters or others that no page or terminal should show."""
    return _UNPRINTABLE.search(placeholder_token) is not None


def _name_pattern(names: Iterable[str], flags: int = 0) -> regex.Pattern:
    """Return the pattern that finds the names in a text, each as a whole: `mytoy` is not in `mytoys`.

    The longest name wins: `<cat>-toy` is not `<cat>`. Without names the pattern matches nothing.
    """
    alternatives = [_whole_name_pattern(name) for name in sorted(names, key=len, reverse=True)]
    return regex.compile(f"({'|'.join(alternatives)})" if alternatives else "(?!)", flags)


def _whole_name_pattern(name: str) -> str:
    alphanumeric = r"[\p{L}\p{N}]"
    before = f"(?<!{alphanumeric})" if regex.match(alphanumeric, name[0]) else ""
    after = f"(?!{alphanumeric})" if regex.match(alphanumeric, name[-1]) else ""
    return before + regex.escape(name) + after
