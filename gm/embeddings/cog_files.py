"""Files that cog-sdxl writes beside `embeddings.pti`: `special_params.json` names the placeholder tokens.

It maps strings in a prompt to the tokens with vectors, as in `{"TOK": "<s0><s1>"}`
(https://github.com/replicate/cog-sdxl, train.py).
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from gm.embeddings.base_format import TokenVectors
from gm.errors import UserError, shorten

EMBEDDINGS = "embeddings.pti"
PARAMETERS = "special_params.json"
_MAX_SIZE = 100_000  # bytes
_VECTOR_NAME = re.compile(r"<s(\d{1,3})>")


def name_tokens(path: Path, vectors: TokenVectors) -> TokenVectors:
    """Return the `vectors` of the file at `path` by the placeholder tokens that the file beside it gives them.

    Raises UserError if that file does not say so, or leaves out a vector.
    """
    parameters = path.with_name(PARAMETERS)
    if not parameters.is_file() or list(vectors) != [None]:
        return vectors
    arrays = vectors[None]
    count = min(map(len, arrays.values()))
    numbers = {token: [int(n) for n in _VECTOR_NAME.findall(names)] for token, names in _read(parameters).items()}
    if sorted(number for each in numbers.values() for number in each) != list(range(count)):
        raise UserError(
            f"{parameters} does not name each of the {count} vectors of {path.name} once, as in "
            '{"TOK": "<s0><s1>"}; get the two files from one training, or delete it'
        )
    return {token: {encoder: array[each] for encoder, array in arrays.items()} for token, each in numbers.items()}


def _read(parameters: Path) -> dict[str, str]:
    """Return the names of vectors by placeholder token."""
    try:
        with parameters.open("rb") as file:
            names = json.loads(file.read(_MAX_SIZE))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {parameters} ({shorten(error)}); get it again, or delete it") from error
    if not isinstance(names, dict) or not all(isinstance(each, str) and token for token, each in names.items()):
        raise UserError(f'{parameters} does not name placeholder tokens as in {{"TOK": "<s0><s1>"}}; get it again')
    return names
