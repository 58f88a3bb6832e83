"""Metadata of each placeholder token in an embedding file: the pooling rule, and details.

A file of one placeholder token has both as entries of its own. A file of several has them for each token, as JSON in
the entry `of_words`: `{token: {"pooling": …, "details": …}}`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from gm.errors import DamagedFileError, shorten

BY_TOKEN_KEY = "of_words"
_TOKEN_KEYS = ("pooling", "details")  # kept by every format; details are JSON themselves


def token_metadata(metadata: Mapping[str, Any], token: str | None, default_pooling: str) -> dict[str, str]:
    """Return what the `metadata` of a file says of one placeholder token: "pooling", and "details" if there are any.

    Raises DamagedFileError for values of another type.
    """
    by_token = _parse_json(metadata[BY_TOKEN_KEY], BY_TOKEN_KEY) if BY_TOKEN_KEY in metadata else {}
    entry = by_token.get(token or "", {})
    if not isinstance(entry, dict):
        raise DamagedFileError(f"metadata {BY_TOKEN_KEY} without a mapping for {shorten(str(token))}")
    values = {key: entry.get(key, metadata.get(key)) for key in _TOKEN_KEYS}
    values["pooling"] = values["pooling"] or default_pooling
    for key, value in values.items():
        if not isinstance(value, str | None):
            raise DamagedFileError(f"metadata {key} that is not a string")
    return {key: value for key, value in values.items() if value}


def parse_details(entry: Mapping[str, str]) -> dict[str, Any]:
    """Return the details in the result of `token_metadata`; raises DamagedFileError if they are not a JSON object."""
    return _parse_json(entry.get("details", "{}"), "details")


def merge_metadata(by_token: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Return the metadata of a file of several placeholder tokens: one entry for all where they agree."""
    entries = list(by_token.values())
    if entries and all(entry == entries[0] for entry in entries):
        return dict(entries[0])
    return {BY_TOKEN_KEY: json.dumps(by_token, ensure_ascii=False)}


def file_metadata(token: str | None, num_vectors: int, entry: Mapping[str, str]) -> dict[str, str | int]:
    """Return the metadata of a file of one placeholder token, in the order that mindone's files begin with."""
    name = {} if token is None else {"placeholder_token": token}
    return {**name, "num_vectors": num_vectors, **entry}


def _parse_json(text: Any, key: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise DamagedFileError(f"metadata {key} that is not JSON ({shorten(error)})") from error
    if not isinstance(value, dict):
        raise DamagedFileError(f"metadata {key} that is not a JSON object")
    return value
