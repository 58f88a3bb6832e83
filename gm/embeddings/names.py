"""Placeholder tokens of embedding files that do not name theirs, and of those that the user renames.

The programs that write such files take the name of the file as placeholder token. So does this toolkit, wherever it
reads one. Names that cannot be a placeholder token get another spelling: those with white space and those that are a
single token of CLIP's vocabulary already, `My Toy v2` → `<My-Toy-v2>`, `cat` → `<cat>`.
"""

from __future__ import annotations

import re
from pathlib import Path

from gm.config import paths
from gm.embeddings.embedding import file_name, safe_filename
from gm.errors import UserError
from gm.text.tokenizer import check_placeholder

_FALLBACK = "<concept>"  # for a name of characters that no placeholder token can have


def token_from_name(name: str) -> str:
    """Return the placeholder token that the `name` of a file, without its suffix, stands for."""
    name = name.strip()
    try:
        check_placeholder(name)
        return name
    except UserError:
        words = "-".join(name.removeprefix("<").removesuffix(">").split())
    token = f"<{safe_filename(words)}>"
    return token if token != "<>" else _FALLBACK


def split_token(path: str | Path) -> tuple[Path, str]:
    """Return the file and the placeholder token of `path`, `file=<token>`; "" if it chooses none.

    A file whose own name holds a `=` is that file. Raises UserError for an empty token.
    """
    text = paths.expand(path)
    signs = [match.start() for match in re.finditer("=", text)]
    if not signs or Path(text).exists():
        return Path(text), ""
    existing = [at for at in signs if Path(text[:at]).exists()]
    if not existing and file_name(text) != Path(text).name:
        return Path(text), ""  # a file that is missing
    at = existing[-1] if existing else signs[0]
    token = text[at + 1 :].strip()
    if not token:
        raise UserError(f'{text} chooses no placeholder token; write "{text[:at]}=<token>"')
    return Path(text[:at]), token
