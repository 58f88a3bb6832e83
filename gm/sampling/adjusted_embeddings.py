"""Embeddings of a sampling run, with the adjustments that its options and prompts ask for."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

from gm.config import SamplingConfig
from gm.config.model import ModelConfig
from gm.embeddings.adjustment import with_adjusted_copies
from gm.embeddings.class_word import class_word
from gm.embeddings.embedding import Embedding, LoadedEmbeddings, VectorAdjustment, combine
from gm.errors import UserError
from gm.text import adjusted_references
from gm.text.adjusted_references import AdjustedReference
from gm.text.tokenizer import VOCAB_SIZE, Tokenizer

log = logging.getLogger("gm")

_USAGE = "write --embedding_adjust alpha,rho with two numbers from 0 to 1, such as 0.5,0.2"


class _Planner:
    """Turns requests for adjustments into `VectorAdjustment`s.

    `class_words` are the class words of `--embedding_class_word`, by placeholder token, "" for all.
    """

    def __init__(self, concepts: Sequence[Embedding], tokenizer: Tokenizer, class_words: Mapping[str, str]) -> None:
        self.concepts = {concept.placeholder_token: concept for concept in concepts}
        self.tokenizer = tokenizer
        self.class_words = class_words
        self.plain = Tokenizer(tokenizer.context_length)  # without placeholder tokens

    def adjustment(self, token: str, alpha: float, rho: float, word: str = "") -> VectorAdjustment | None:
        """Return the adjustment of the vectors of `token`, None if it would change nothing."""
        if alpha == 0 and rho == 0:
            return None
        ids = self.tokenizer.placeholders[token]
        place = slice(ids[0] - VOCAB_SIZE, ids[-1] + 1 - VOCAB_SIZE)
        return VectorAdjustment(place, self._class_ids(token, word), alpha, rho)

    def _class_ids(self, token: str, word: str) -> tuple[int, ...]:
        concept = self.concepts[token]
        word = word or self.class_words.get(token) or self.class_words.get("") or class_word(concept)
        if not word:
            source = f"the file {concept.source}" if concept.source else "its metadata"
            raise UserError(
                f"{token} cannot be adjusted: {source} does not say its class word; give --embedding_class_word "
                f'"{token}=word", or write {token}{{0.5,0.2,word}} in the prompt'
            )
        ids = tuple(self.plain.encode(word))
        if not ids:
            raise UserError(f"the class word {word!r} of {token} has no tokens; give a word such as dog")
        if len(ids) > concept.num_vectors:
            log.warning(
                "the class word %r has %d tokens; %s has %d vectors, which use the first %d",
                word,
                len(ids),
                token,
                concept.num_vectors,
                concept.num_vectors,
            )
        return ids


def load(concepts: Sequence[Embedding], options: Sequence[SamplingConfig], model: ModelConfig) -> LoadedEmbeddings:
    """Return `concepts` combined for prompts with these `options`, one for each prompt, which share the adjustments.

    All embeddings are adjusted as `embedding_adjust` says, and those in a prompt's own way besides, as placeholder
    tokens of their own. Raises UserError for numbers that are not α and ρ, and for an embedding without a class word.
    """
    embeddings = combine(concepts, model)
    sampling = options[0]
    tokens = list(embeddings.tokenizer.placeholders)
    planner = _Planner(concepts, embeddings.tokenizer, _class_words(sampling.embedding_class_word, tokens))
    references = list(dict.fromkeys(_references(options, embeddings.tokenizer)))
    adjustments: list[VectorAdjustment | None] = []
    if sampling.embedding_adjust is not None:
        where = f"--embedding_adjust {sampling.embedding_adjust!r}"
        alpha, rho = adjusted_references.parse_values(sampling.embedding_adjust, where, _USAGE)
        adjustments = [planner.adjustment(token, alpha, rho) for token in tokens]
    if sampling.embedding_class_word and sampling.embedding_adjust is None and not references:
        log.warning(
            "--embedding_class_word %s has no effect without --embedding_adjust, or <token>{alpha,rho} in a prompt",
            " ".join(sampling.embedding_class_word),
        )
    copies = [(each.token, each.name, planner.adjustment(*each)) for each in references]
    adjusted = LoadedEmbeddings(
        embeddings.tokenizer, embeddings.vectors, tuple(each for each in adjustments if each is not None)
    )
    return with_adjusted_copies(adjusted, copies)


def _references(options: Iterable[SamplingConfig], tokenizer: Tokenizer) -> Iterable[AdjustedReference]:
    """Yield the adjusted references in all prompts; where brackets are text, braces are, too."""
    for each in options:
        if each.prompt_weights:
            for prompt in (each.prompt, each.negative_prompt):
                yield from adjusted_references.find(prompt, tokenizer)


def _class_words(entries: Sequence[str], tokens: Sequence[str]) -> dict[str, str]:
    """Return the words of `--embedding_class_word` by placeholder token, "" for all; UserError for a wrong entry."""
    class_words: dict[str, str] = {}
    for entry in entries:
        token, sign, word = entry.rpartition("=")
        known = next((each for each in tokens if each.lower() == token.strip().lower()), "")
        if sign and not known:
            loaded = ", ".join(tokens) or "none"
            raise UserError(f"--embedding_class_word {entry!r} is for {token!r}, and the embeddings are {loaded}")
        if not word.strip():
            raise UserError(f'--embedding_class_word {entry!r} holds no word; write it as dog or "<token>=dog"')
        if known in class_words:
            raise UserError(f"--embedding_class_word has two words for {known or 'all embeddings'}; give one")
        class_words[known] = word.strip()
    return class_words
