"""Embedding files of a run, `SD-XL-base-1.0_3000_ti.ckpt`, and the embeddings in them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from gm.config.model import ModelConfig
from gm.embeddings import io as embedding_io
from gm.embeddings.embedding import NO_POOLING, Embedding
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
        "prediction_type": config.model.schedule.prediction,
        "step": step,
        "seed": config.training.seed,
        "recipe": {name: options[name] for name in _SECTIONS},
    }
    if config.model.text_encoder_1.clip_skip > 1:
        metadata["clip_skip"] = config.model.text_encoder_1.clip_skip
    if architecture := _architecture(config.model):
        metadata["modelspec.architecture"] = f"{architecture}/textual-inversion"
    if setup.loras:
        metadata["loras"] = lora_files.as_json(setup.loras)
    return [
        Embedding(
            concept.placeholder_token,
            {encoder: each[concept.vector_slice] for encoder, each in vectors.items()},
            config.run.pooling if config.model.has_class_embedding else NO_POOLING,
            metadata | ({"class_word": concept.config.class_word} if concept.config.class_word else {}),
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


def _architecture(model: ModelConfig) -> str:
    """Return ModelSpec's name of Stable Diffusion 1 or 2, "" for SDXL, whose two encoders say enough.

    The names are those of kohya's scripts (library/sai_model_spec.py).
    """
    sd2 = "stable-diffusion-v2-768-v" if model.schedule.prediction == "v_prediction" else "stable-diffusion-v2-512"
    return {"sd1": "stable-diffusion-v1", "sd2": sd2}.get(model.family, "")
