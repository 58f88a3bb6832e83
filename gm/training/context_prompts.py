"""Data of the context loss: prompts with a placeholder token, beside the same with the class word."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from mindspore import Tensor

from gm.config import ConceptConfig, Config
from gm.data import context_prompts, templates
from gm.errors import UserError
from gm.models.stable_diffusion import StableDiffusion
from gm.runtime import rng
from gm.text import chunks
from gm.text.chunks import Chunk
from gm.text.tokenizer import END, VOCAB_SIZE, Tokenizer
from gm.training.regularization import hidden_states

log = logging.getLogger("gm")

_REFERENCE_BATCH = 8  # prompts that the text encoders take at once


@dataclass(frozen=True)
class ContextPrompt:
    """A prompt with a placeholder token, and its reference, the same with the class word.

    ids: int32 [77] by text encoder; positions: of its context tokens, those after the placeholder token up to the end
    of the text, int64 [n]; those of the reference are the same tokens. The tokens before it do not attend to it.
    """

    text: str
    ids: dict[str, np.ndarray]
    positions: np.ndarray
    reference_ids: dict[str, np.ndarray]
    reference_positions: np.ndarray


@dataclass(frozen=True)
class ContextSampler:
    """The inputs of the context loss for samples of a run, by their numbers.

    `encoders` are those of the loss. `references` are the hidden states of each prompt's reference in each of them,
    scaled to norm 1, float32 [n, width] for n context tokens.
    """

    prompts: Sequence[ContextPrompt]
    encoders: tuple[str, ...]
    seed: int
    references: list[dict[str, np.ndarray]] = field(default_factory=list)

    def inputs(self, indices: Sequence[int]) -> tuple[Tensor, ...]:
        """Return the inputs of `ContextLoss` for samples, by their numbers in the run, which have a random prompt each.

        The weights of the positions, float32 [B, 77], then of each encoder the ids, int32 [B, 77], and the reference
        states, float32 [B, 77, width], at the positions of the context tokens.
        """
        chosen = [rng.integer(len(self.prompts), self.seed, "context prompt", index) for index in indices]
        prompts = [self.prompts[number] for number in chosen]
        length = len(prompts[0].ids[self.encoders[0]])
        weights = np.zeros((len(prompts), length), np.float32)
        for row, prompt in zip(weights, prompts, strict=True):
            row[prompt.positions] = 1 / len(prompt.positions)
        inputs = [weights]
        for encoder in self.encoders:
            inputs.append(np.stack([prompt.ids[encoder] for prompt in prompts]))
            width = self.references[0][encoder].shape[1]
            states = np.zeros((len(prompts), length, width), np.float32)
            for row, number, prompt in zip(states, chosen, prompts, strict=True):
                row[prompt.positions] = self.references[number][encoder]
            inputs.append(states)
        return tuple(map(Tensor, inputs))


def read(config: Config, concepts: Sequence[ConceptConfig]) -> list[ContextPrompt]:
    """Return the context prompts of all concepts but a negative one; none if the loss has no weight.

    Raises UserError for a concept without a class word, a prompt that names another concept or fills more than a chunk,
    and for an encoder that the model does not have.
    """
    if not config.loss.context_loss_weight:
        return []
    encoders_of(config)
    prompts = []
    for concept in [each for each in concepts if not each.negative]:
        word = class_word(concept)
        if not word:
            raise UserError(
                f"--context_loss_weight needs the class word of {concept.placeholder_token}, and it has no "
                "--initializer_token; give one, such as dog"
            )
        others = [each.placeholder_token for each in concepts if each is not concept]
        for line in context_prompts.load(concept.learnable_property, config.loss.context_prompt_file):
            prompts.append(_prompt(line, concept, word, others, config.model.context_length))
    return prompts


def class_word(concept: ConceptConfig) -> str:
    """Return the word that context words stand beside in the references of a concept, "" if there is none."""
    return concept.class_word or concept.initializer_token or ""


def encoders_of(config: Config) -> tuple[str, ...]:
    """Return the text encoders of the context loss; UserError for one that the model does not have."""
    names, chosen = tuple(config.model.text_encoders), config.loss.context_encoders
    if chosen == "all":
        return names
    if chosen not in names:
        raise UserError(f"--context_encoders {chosen} is for another model; this one has {' and '.join(names)}, or all")
    return (chosen,)


def create_sampler(model: StableDiffusion, config: Config, prompts: Sequence[ContextPrompt]) -> ContextSampler | None:
    """Return the sampler of `prompts`, whose references the text encoders compute once; None without prompts."""
    if not prompts:
        return None
    encoders = encoders_of(config)
    references: list[dict[str, np.ndarray]] = [{} for _ in prompts]
    for encoder in encoders:
        for first in range(0, len(prompts), _REFERENCE_BATCH):
            batch = prompts[first : first + _REFERENCE_BATCH]
            ids = Tensor(np.stack([prompt.reference_ids[encoder] for prompt in batch]))
            states = hidden_states(model, encoder, ids).asnumpy().astype(np.float32)
            for k, prompt in enumerate(batch):
                vectors = states[k, prompt.reference_positions]
                references[first + k][encoder] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    log.info("context loss: %d prompts, such as %r", len(prompts), prompts[0].text)
    return ContextSampler(prompts, encoders, config.training.seed, references)


def _prompt(line: str, concept: ConceptConfig, word: str, others: Sequence[str], context_length: int) -> ContextPrompt:
    """Return the prompt of a line; UserError if it cannot be one."""
    text = templates.fill(line, concept.placeholder_token)
    class_ids = Tokenizer(context_length).encode(word)
    ids, positions = _encode(text, concept, concept.num_vectors, others, context_length)
    reference_ids, reference_positions = _encode(text, concept, len(class_ids), others, context_length)
    for each in reference_ids.values():
        is_word = each >= VOCAB_SIZE
        each[is_word] = np.asarray(class_ids, np.int32)[each[is_word] - VOCAB_SIZE]
    return ContextPrompt(text, ids, positions, reference_ids, reference_positions)


def _encode(
    text: str, concept: ConceptConfig, num_ids: int, others: Sequence[str], context_length: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return the ids of `text` by text encoder, with `num_ids` for the placeholder token, and its context positions."""
    tokenizer = Tokenizer(context_length)
    token_ids = tokenizer.add_placeholder(concept.placeholder_token, num_ids)
    for other in others:
        tokenizer.add_placeholder(other, 1)
    encoded = chunks.encode_literally(text, tokenizer)
    if len(encoded) > 1:
        raise UserError(f"the context prompt {text!r} has more than {context_length - 2} tokens; shorten it")
    if any(number > token_ids[-1] for number in encoded[0].ids):
        raise UserError(
            f"the context prompt {text!r} names another concept of the run; write {{}} for the concept and words for "
            "all else"
        )
    arrays, _ = chunks.to_arrays([Chunk(encoded[0].ids, encoded[0].weights)], context_length)
    ids = {encoder: array[0] for encoder, array in arrays.items()}
    return ids, _context_positions(next(iter(ids.values())))


def _context_positions(ids: np.ndarray) -> np.ndarray:
    """Return the positions after the first placeholder id up to the first end of text, without placeholder ids."""
    is_token = ids >= VOCAB_SIZE
    first, end = int(is_token.argmax()), int((ids == END).argmax())
    positions = np.arange(first, end + 1)
    return positions[~is_token[first : end + 1]]
