"""Options of training that an embedding file of this toolkit records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gm.embeddings.embedding import Embedding


def concept_options(embedding: Embedding) -> dict[str, Any]:
    """Return the options of the concept with which `embedding` was trained, as far as its file records them.

    Of several concepts that were trained together, they are those of the one with this placeholder token; none if the
    token was renamed. The values may be of any type, since anybody can write a file.
    """
    concept = _mapping(_mapping(embedding.metadata.get("recipe")).get("concept"))
    entries = concept.get("concepts")
    if not isinstance(entries, list) or not entries:
        return dict(concept)
    entries = [_mapping(each) for each in entries]
    if len(entries) > 1:
        entries = [each for each in entries if each.get("placeholder_token") == embedding.placeholder_token]
    return {**concept, **entries[0]} if entries else {}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
