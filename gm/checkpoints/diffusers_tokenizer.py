"""Tokenizer in a diffusers folder: its token ids, and its files with added tokens.

The files are those of transformers' CLIPTokenizer (`save_pretrained`): `vocab.json` and `merges.txt`, beside them
`added_tokens.json` with the tokens that were added. Since version 4.34 `tokenizer_config.json` lists added tokens as
`added_tokens_decoder`; version 5 writes vocabulary and added tokens into `tokenizer.json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gm.checkpoints.diffusers_configs import read_json
from gm.errors import UserError

FAST = "tokenizer.json"
_ADDED = "added_tokens.json"
_CONFIG = "tokenizer_config.json"
_VOCABULARY = "vocab.json"
_ADDED_IN_CONFIG = "added_tokens_decoder"
# What `add_tokens` gives a string. `normalized`: it is found after the text is in lower case.
_PROPERTIES = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}


def token_ids(folder: Path) -> dict[str, int]:
    """Return the id of each token, added ones included; UserError for a folder without a tokenizer."""
    fast = read_json(folder / FAST)
    try:
        ids = {**read_json(folder / _VOCABULARY), **fast.get("model", {}).get("vocab", {})}
        ids |= read_json(folder / _ADDED)
        ids |= {entry["content"]: entry["id"] for entry in fast.get("added_tokens", [])}
        listed = read_json(folder / _CONFIG).get(_ADDED_IN_CONFIG, {})
        ids |= {entry["content"]: int(number) for number, entry in listed.items()}
        is_valid = all(type(number) is int and number >= 0 for number in ids.values())
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder} is not a tokenizer of transformers; download or copy it again") from error
    if not ids or not is_valid:
        raise UserError(f"{folder} has no vocabulary in {_VOCABULARY} or {FAST}; download or copy it again")
    return ids


def with_added_tokens(folder: Path, tokens: Sequence[str], first: int) -> dict[str, dict[str, Any]]:
    """Return the contents of the files that change if `tokens` get the ids from `first` on, by file name."""
    new = {token: first + number for number, token in enumerate(tokens)}
    files = {_ADDED: read_json(folder / _ADDED) | new}
    config = read_json(folder / _CONFIG)
    if _ADDED_IN_CONFIG in config:
        entries = {str(number): {"content": token, **_PROPERTIES} for token, number in new.items()}
        files[_CONFIG] = config | {_ADDED_IN_CONFIG: config[_ADDED_IN_CONFIG] | entries}
    if (folder / FAST).is_file():
        fast = read_json(folder / FAST)
        listed = [{"id": number, "content": token, **_PROPERTIES} for token, number in new.items()]
        files[FAST] = fast | {"added_tokens": [*fast.get("added_tokens", []), *listed]}
    return files
