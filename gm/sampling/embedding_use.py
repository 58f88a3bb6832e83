"""Whether prompts use the embeddings that are loaded, as they were trained."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence

from gm.embeddings.embedding import UNKNOWN_POOLING, Embedding
from gm.errors import UserError
from gm.text import adjusted_references
from gm.text.prompt_parser import PromptSchedule
from gm.text.tokenizer import Tokenizer

log = logging.getLogger("gm")


def check(
    concepts: Sequence[Embedding],
    tokenizer: Tokenizer,
    prompts: Mapping[str, PromptSchedule],
    pooling: str | None,
    literal: bool,
) -> None:
    """Warn of embeddings that none of `prompts` uses, and of those that were trained with another pooling rule.

    `pooling` is None for a model that pools no text. Raises UserError if a prompt calls an unused embedding by the name
    of its file, unless prompts are `literal`.
    """
    used = {
        number
        for schedule in prompts.values()
        for chunks in schedule.variants
        for chunk in chunks
        for number in chunk.ids
    }
    for concept in concepts:
        token = concept.placeholder_token
        if not used & adjusted_references.adjusted_ids(token, tokenizer):
            if not literal:
                _check_not_called_by_file_name(concept, prompts)
            log.warning("no prompt uses %s", token)
        if pooling is None:
            continue
        if concept.pooling == UNKNOWN_POOLING:
            log.warning(
                "the file of %s does not say with which --pooling it was trained: OneTrainer, invoke-training and "
                "diffusers train with argmax, kohya with end_of_text; %s is used",
                token,
                pooling,
            )
        elif concept.pooling != pooling:
            log.warning(
                "%s was trained with --pooling %s, but %s is used; give --pooling %s",
                token,
                concept.pooling,
                pooling,
                concept.pooling,
            )


def _check_not_called_by_file_name(concept: Embedding, prompts: Iterable[str]) -> None:
    """Raise UserError if one of `prompts` has the name of the embedding's file: AUTOMATIC1111's prompts do so."""
    name = re.compile(rf"(?<!\w){re.escape(concept.name)}(?!\w)", re.IGNORECASE)
    if concept.name and any(name.search(prompt) for prompt in prompts):
        token = concept.placeholder_token
        raise UserError(
            f"the prompt says {concept.name!r}, but the placeholder token of {concept.source} is {token}; write "
            f'{token}, or choose another: --textual_inversion_weight "{concept.source}=<token>"'
        )
