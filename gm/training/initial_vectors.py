"""Initial embedding vectors of a run."""

from __future__ import annotations

import numpy as np

from gm.embeddings import init
from gm.models.stable_diffusion import StableDiffusion
from gm.training.concept_data import TrainingConcept
from gm.training.setup import TrainingSetup
from gm.training.train_state import Vectors

_NOISE_STREAM = {"clip_l": 1, "clip_g": 2, "clip_h": 3}  # number of a text encoder in the stream of random vectors


def initial_vectors(model: StableDiffusion, setup: TrainingSetup) -> Vectors:
    """Return the initial vectors of all concepts by text encoder, in the order of the model's text encoders.

    Those of a run that is resumed are the ones that it began with, whatever its seed is now.
    """
    seed = setup.config.training.seed
    if setup.resume_from:
        seed = setup.resume_from.options.get("training", {}).get("seed", seed)
    return {
        encoder: np.concatenate(
            [_concept_vectors(model, concept, k, encoder, table, seed) for k, concept in enumerate(setup.concepts)]
        )
        for encoder, table in model.token_tables().items()
    }


def _concept_vectors(
    model: StableDiffusion, concept: TrainingConcept, number: int, encoder: str, table: np.ndarray, seed: int
) -> np.ndarray:
    """Return the initial vectors of a concept, float32 [num_vectors, width]; `table` is the encoder's token table.

    With `cross_initialization` they are what the encoder makes of the initializer token (Pang et al., 2024, "Cross
    Initialization for Face Personalization of Text-to-Image Models", https://arxiv.org/abs/2312.15905).
    """
    num_vectors = concept.config.num_vectors
    if concept.initial_vectors is not None:
        vectors = concept.initial_vectors[encoder]
        return init.from_tokens(vectors, list(range(len(vectors))), num_vectors)
    if concept.initializer_names is not None:
        vectors = init.mean_of_names(table, concept.initializer_names, num_vectors)
        return model.text_encoder_output(encoder, vectors) if concept.config.cross_initialization else vectors
    if concept.initializer_ids is not None and concept.config.cross_initialization:
        outputs = model.text_encoder_output(encoder, table[concept.initializer_ids[:num_vectors]])
        return init.from_tokens(outputs, list(range(len(outputs))), num_vectors)
    if concept.initializer_ids is not None:
        return init.from_tokens(table, concept.initializer_ids, num_vectors)
    return init.random_vectors(table, num_vectors, seed, _NOISE_STREAM[encoder], number)
