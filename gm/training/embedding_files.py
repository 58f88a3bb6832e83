"""Embedding files of a run, `SD-XL-base-1.0_3000_ti.ckpt`, and the embeddings in them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from gm.embeddings import io as embedding_io
from gm.embeddings.embedding import Embedding
from gm.lora import files as lora_files
from gm.training import checkpoint
from gm.training.concept_data import TrainingConcept
from gm.training.setup import TrainingSetup

BEST = "best"  # in the place of the step: the embedding with the lowest validation loss
_SECTIONS = ("run", "concept", "data", "training", "loss")


def embeddings(setup: TrainingSetup, vectors: Mapping[str, np.ndarray], base_model: str, step: int) -> list[Embedding]:
    """Return the embedding of each concept at `step`, with the options of the run as metadata."""
    config = setup.config
    options = checkpoint.config_values(config)
    options["concept"]["concepts"] = options["concepts"]  # the place of the list in the file format
    metadata = {
        "version": config.model.version,
        "base_model": base_model,
        "step": step,
        "seed": config.training.seed,
        "recipe": {name: options[name] for name in _SECTIONS},
    }
    if setup.loras:
        metadata["loras"] = lora_files.as_json(setup.loras)
    return [
        Embedding(
            concept.placeholder_token,
            {encoder: each[concept.vector_slice] for encoder, each in vectors.items()},
            config.run.pooling,
            metadata,
        )
        for concept in setup.concepts
    ]


def save(folder: Path, setup: TrainingSetup, trained: list[Embedding], step: int | str) -> None:
    """Write the embedding of each concept in all formats."""
    for concept, embedding in zip(setup.concepts, trained, strict=True):
        for suffix in embedding_io.SAVE_FORMATS:
            embedding_io.save(embedding, (folder / file_name(setup, concept, step)).with_suffix(suffix))


def file_name(setup: TrainingSetup, concept: TrainingConcept, step: int | str) -> str:
    """Return the name of the embedding file of a step, or of the `BEST`.

    In a run of several concepts it holds the placeholder token: `SD-XL-base-1.0_cat-toy_3000_ti.ckpt`.
    """
    stem = f"_{concept.file_stem}" if len(setup.concepts) > 1 else ""
    return f"{setup.config.model.version}{stem}_{step}_ti.ckpt"
