"""Class word of an embedding: the class of its concept, such as dog, as its file records it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from gm.embeddings.embedding import Embedding
from gm.embeddings.training_options import concept_options


def class_word(embedding: Embedding) -> str:
    """Return the class word in the metadata of an embedding file, "" if it has none.

    It is the entry `class_word`, or the initializer token of training: of this toolkit's options (`recipe`), or of
    OneTrainer's config (`ot_config`, `initial_embedding_text`), which it stores if the user wishes.
    """
    metadata = embedding.metadata
    return _text(metadata.get("class_word")) or _of_recipe(embedding) or _of_onetrainer(metadata.get("ot_config"))


def _of_recipe(embedding: Embedding) -> str:
    """Return the class word in the options of training, or their initializer token."""
    concept = concept_options(embedding)
    return _text(concept.get("class_word")) or _text(concept.get("initializer_token"))


def _of_onetrainer(config: Any) -> str:
    try:
        values = _mapping(json.loads(config)) if isinstance(config, str) else {}
    except ValueError:
        return ""
    text = _text(_mapping(values.get("embedding")).get("initial_embedding_text"))
    return "" if text == "*" else text  # its default, which stands for no word


def _text(value: Any) -> str:
    return value.strip() if isinstance(value, str) else ""


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
