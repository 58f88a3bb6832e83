"""The toolkit in four calls: load, learn, generate, save. The scripts are thin over the same functions.

A word from images, and an image with it:

    toolkit = api.load("configs/training/tiny_textual_inversion.yaml")
    concept = api.train(toolkit, "datasets/humbug", "<humbug>", initializer_token="heart")
    images = api.generate(toolkit, "a <humbug> on a blue background", [concept], seed=7)
    api.save_embedding(concept, "humbug_ti.ckpt")
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gm import config as configuration
from gm.checkpoints import loading
from gm.config import Config, SamplingConfig
from gm.embeddings import io as embedding_io
from gm.embeddings.embedding import Embedding, combine
from gm.errors import UserError
from gm.models import sdxl
from gm.models.sdxl import SDXL
from gm.runtime import backend as backend_
from gm.runtime.backend import Backend
from gm.sampling import request, run
from gm.sampling.pipeline import Pipeline
from gm.training import callbacks, loop, setup
from gm.training import trainer as runs
from gm.training.loop import StepResult

__all__ = ["Embedding", "Toolkit", "generate", "load", "load_embedding", "save_embedding", "train", "train_concepts"]

log = logging.getLogger("gm")


@dataclass(frozen=True)
class Toolkit:
    """A loaded model, the config it came from, and where it runs."""

    config: Config
    model: SDXL
    backend: Backend

    @cached_property
    def pipeline(self) -> Pipeline:
        """What draws; made when first asked for, since it holds on to the autoencoder."""
        return Pipeline(self.model, self.backend, self.config.run.pooling)


def load(config: Config | str | Path, **sections: dict[str, Any]) -> Toolkit:
    """Set up the device and load the model that `config` (or its YAML file) describes.

    `sections` override single options: `run={"ms_mode": 1}`. Raises UserError for what is missing or does not fit, and
    for a refiner.
    """
    if not isinstance(config, Config):
        config = configuration.load(config, sections)
    elif sections:
        raise UserError("options go into the Config, or give the path of a YAML file and options beside it")
    config.model.require("base")
    if not Path(config.run.weight).exists():
        raise UserError(
            f"no weights {config.run.weight}; --weight names them, tools/convert_weights/convert.py makes them"
        )
    backend = backend_.setup(config.run, config.training.is_parallel, config.training.distributed_timeout)
    started = time.perf_counter()
    model = sdxl.build(config.model, backend.dtype)
    loading.load_weights(model, config.run.weight, config.model, backend.keep_half_above)
    if config.training.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    log.info("loaded %s in %.1f s", config.run.weight, time.perf_counter() - started)
    return Toolkit(config, model, backend)


def train(
    toolkit: Toolkit,
    data_path: str | Path,
    placeholder_token: str,
    *,
    on_step: Callable[[StepResult], None] = lambda report: None,
    training: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    loss: dict[str, Any] | None = None,
    **concept: Any,
) -> Embedding:
    """Learn `placeholder_token` from the images in `data_path` and return the concept; writes no file.

    `concept`, `training`, `data` and `loss` override options of those config sections (`num_vectors=4`).
    """
    given = {"placeholder_token": placeholder_token, "data_path": str(data_path), **concept}
    return train_concepts(toolkit, [given], on_step=on_step, training=training, data=data, loss=loss)[0]


def train_concepts(
    toolkit: Toolkit,
    concepts: Sequence[dict[str, Any]],
    *,
    on_step: Callable[[StepResult], None] = lambda report: None,
    training: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    loss: dict[str, Any] | None = None,
) -> list[Embedding]:
    """Learn several words at once and return them, a negative one last; writes no file.

    `concepts` are as in the option of that name: `{"placeholder_token": "<a>", "data_path": "a", "num_vectors": 4}`,
    `{"placeholder_token": "<bad>", "negative": True}`. The others override options of their config sections.
    """
    base = toolkit.config
    config = dataclasses.replace(
        base,
        concept=dataclasses.replace(base.concept, concepts=list(concepts)),
        training=dataclasses.replace(base.training, **training or {}),
        data=dataclasses.replace(base.data, **data or {}),
        loss=dataclasses.replace(base.loss, **loss or {}),
    )
    configuration.check(config)
    made = setup.prepare(config)
    learned, loader = runs.prepare(toolkit.model, made, toolkit.backend)
    for report in loop.run(toolkit.model, learned, loader, config, made.updates, toolkit.backend):
        on_step(report)
    return callbacks.concepts(learned, made, sdxl.fingerprint(toolkit.model), config.training.total_step)


def generate(
    toolkit: Toolkit, prompt: str | Sequence[str], concepts: Sequence[Embedding] = (), **sampling: Any
) -> list[np.ndarray]:
    """Return one image a prompt, uint8 [H, W, 3]; image k is drawn from `seed` + k.

    `sampling` overrides options of that config section (`seed=7, sample_step=20`, or `task="img2img", img=["a.png"]`
    with one image to start from). Raises UserError for options that cannot be.
    """
    options: SamplingConfig = dataclasses.replace(toolkit.config.sampling, **sampling)
    config = dataclasses.replace(toolkit.config, sampling=options)
    configuration.check(config)
    request.check(config.model, options)
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    embeddings = combine(concepts, config.model)
    requests = request.image_requests(prompts, options, config.model, embeddings)
    grids = request.prompt_grids(requests, options, config.model)
    if len(grids) != 1:
        raise UserError(f"there are {len(grids)} images to start from; give one a call")
    steps = run.generate_grid(toolkit.pipeline, grids[0], embeddings, options)
    return [image for progress in steps for image in progress.images]


save_embedding = embedding_io.save
load_embedding = embedding_io.load
