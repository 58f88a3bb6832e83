"""Metadata of each placeholder token in an embedding file: the pooling rule, details, and entries of other programs.

A file of one placeholder token has them as entries of its own. A file of several has them for each token, as JSON in
the entry `of_words`: `{token: {"pooling": …, "details": …, "modelspec.author": …}}`.

Other programs' entries are those of Stability's modelspec (https://github.com/Stability-AI/ModelSpec: title, author,
license, trigger_phrase, …), of kohya (`ss_…`), OneTrainer (`ot_…`), AUTOMATIC1111 (`sd_checkpoint`) and any more.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from gm.errors import DamagedFileError, shorten

BY_TOKEN_KEY = "of_words"
_TOKEN_KEYS = ("pooling", "details")  # kept by every format; details are JSON themselves
_FILE_KEYS = ("placeholder_token", "num_vectors", "format", BY_TOKEN_KEY)  # of the file, or of its container
_HASHES = ("modelspec.hash_sha256", "sshs_model_hash", "sshs_legacy_hash")  # of the file as it was
_ENTRY_OF_A_PROGRAM = re.compile(r"modelspec\.|ss_|ot_")  # other programs look for these in safetensors


def token_metadata(metadata: Mapping[str, Any], token: str | None, default_pooling: str) -> dict[str, str]:
    """Return the `metadata` of a file for one placeholder token: "pooling", and "details" if there are any.

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


def other_metadata(metadata: Mapping[str, Any], token: str | None) -> dict[str, Any]:
    """Return the `metadata` of a file, as other programs wrote them, for one placeholder token."""
    entry = metadata
    if BY_TOKEN_KEY in metadata:
        entry = metadata | _parse_json(metadata[BY_TOKEN_KEY], BY_TOKEN_KEY).get(token or "", {})
    ours = (*_TOKEN_KEYS, *_FILE_KEYS, *_HASHES)
    return {key: value for key, value in entry.items() if key not in ours and value not in (None, "")}


def split_details(details: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the details without the entries that other programs look for, and those."""
    public = {key: str(value) for key, value in details.items() if _ENTRY_OF_A_PROGRAM.match(key)}
    return {key: value for key, value in details.items() if key not in public}, public


def parse_details(entry: Mapping[str, str]) -> dict[str, Any]:
    """Return the details in the result of `token_metadata`; raises DamagedFileError if they are not a JSON object."""
    return _parse_json(entry.get("details", "{}"), "details")


def merge_metadata(by_token: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the metadata of a file of several placeholder tokens: one entry for all where they agree."""
    entries = list(by_token.values())
    if entries and all(entry == entries[0] for entry in entries):
        return dict(entries[0])
    return {BY_TOKEN_KEY: json.dumps(by_token, ensure_ascii=False)}


def file_metadata(token: str | None, num_vectors: int) -> dict[str, str | int]:
    """Return the entries that mindone's files have beside the vectors."""
    name = {} if token is None else {"placeholder_token": token}
    return {**name, "num_vectors": num_vectors}


def _parse_json(text: Any, key: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise DamagedFileError(f"metadata {key} that is not JSON ({shorten(error)})") from error
    if not isinstance(value, dict):
        raise DamagedFileError(f"metadata {key} that is not a JSON object")
    return value
