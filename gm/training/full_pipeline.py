"""`--save_as_full_pipeline`: after training, the base model's diffusers folder with the placeholder tokens in it.

diffusers' scripts write it into the output folder, too, at the end of training.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from gm.checkpoints import full_pipeline
from gm.checkpoints.full_pipeline import FullPipeline
from gm.config import ConceptConfig, Config
from gm.embeddings import embedding
from gm.embeddings import io as embedding_io
from gm.errors import UserError

log = logging.getLogger("gm")


def check(config: Config, concepts: Sequence[ConceptConfig]) -> None:
    """Raise UserError before training if the pipeline could not be written after it.

    The base model must be a whole diffusers folder that is not the output folder, and its tokenizers must not have the
    placeholder tokens.
    """
    source = Path(config.run.weight)
    if not source.exists():
        return  # loading says so
    target = Path(config.training.save_path).resolve()
    if source.is_dir() and source.resolve() in (target, *target.parents):
        raise UserError(
            f"--save_as_full_pipeline writes into --save_path {config.training.save_path}, which is in the folder of "
            "the base model; choose another"
        )
    _prepare(config, [(concept.placeholder_token, concept.num_vectors) for concept in concepts])
    if config.run.lora_weight:
        log.warning(
            "--save_as_full_pipeline: the pipeline has the weights of the base model without --lora_weight; load the "
            "LoRA into it"
        )


def save(config: Config, paths: Sequence[Path]) -> Path:
    """Write the pipeline with the embeddings in the files `paths` into the output folder; return the folder.

    Raises UserError as `gm.checkpoints.full_pipeline.write` does.
    """
    trained = [embedding_io.load(path, family=None) for path in paths]
    vectors = embedding.combine(trained, config.model).vectors
    folder = Path(config.training.save_path)
    try:
        pipeline = _prepare(config, [(each.placeholder_token, each.num_vectors) for each in trained])
        full_pipeline.write(pipeline, folder, vectors)
    except UserError as error:
        raise UserError(
            f"{error}; the embedding is saved, and the same command with --resume latest writes the pipeline alone"
        ) from error
    return folder


def files(config: Config, folder: Path) -> list[str]:
    """Return the files and folders of the pipeline that an earlier run left in `folder`; none of the base model."""
    if Path(config.run.weight).resolve() == folder.resolve():
        return []
    return full_pipeline.component_names(folder)


def _prepare(config: Config, concepts: Sequence[tuple[str, int]]) -> FullPipeline:
    tokens = [token for concept in concepts for token in full_pipeline.token_names(*concept)]
    return full_pipeline.prepare(Path(config.run.weight), config.model, tokens, config.run.networks)
