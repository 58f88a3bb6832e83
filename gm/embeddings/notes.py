"""What an embedding file says of its words beside their rows: the pooling rule of each, and details.

A file of one word has both as entries of its own. One of several words has them for each, as JSON in the entry
`of_words`: `{word: {"pooling": …, "details": …}}`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from gm.errors import shorten

OF_WORDS = "of_words"
_KEPT = ("pooling", "details")  # whatever the format; details are JSON of their own

Notes = Mapping[str, Any]


class Unreadable(Exception):
    """A note is not what it should be; the text says how."""


def of_word(notes: Notes, word: str | None, pooling: str) -> dict[str, str]:
    """Return what the `notes` of a file keep of one of its words: "pooling" (of the format, if no other), "details".

    Raises Unreadable for notes that are of another type than they should be.
    """
    own = _parsed(notes[OF_WORDS], OF_WORDS).get(word or "", {}) if OF_WORDS in notes else {}
    if not isinstance(own, dict):
        raise Unreadable(f"a note, {OF_WORDS}, that tells nothing of {shorten(str(word))}")
    found = {name: own.get(name, notes.get(name)) for name in _KEPT}
    found["pooling"] = found["pooling"] or pooling
    wrong = next((name for name, value in found.items() if not isinstance(value, str | None)), None)
    if wrong:
        raise Unreadable(f"a note, {wrong}, that is no text")
    return {name: value for name, value in found.items() if value}


def details(own: Mapping[str, str]) -> dict[str, Any]:
    """Return the details in what `of_word` gave; raises Unreadable if they are no JSON or no table."""
    return _parsed(own.get("details", "{}"), "details")


def merged(words: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Return the notes of a file of the `words`, each with what `of_word` gave: for all where they agree."""
    said = list(words.values())
    if said and all(own == said[0] for own in said):
        return dict(said[0])
    return {OF_WORDS: json.dumps(words, ensure_ascii=False)}


def entries(word: str | None, vectors: int, own: Mapping[str, str]) -> dict[str, str | int]:
    """Return the entries of a file of one word, in the order that mindone's begin with."""
    called = {} if word is None else {"placeholder_token": word}
    return {**called, "num_vectors": vectors, **own}


def _parsed(text: Any, name: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise Unreadable(f"a note, {name}, that is no JSON ({shorten(error)})") from error
    if not isinstance(found, dict):
        raise Unreadable(f"a note, {name}, that is no table of names and values")
    return found
