"""Python API: load a model, train embeddings, generate images, save and load embedding files.

toolkit = api.load("configs/training/tiny_textual_inversion.yaml")
embedding = api.train(toolkit, "datasets/humbug", "<humbug>", initializer_token="heart")
images = api.generate(toolkit, "a <humbug> on a blue background", [embedding], seed=7)
api.save_embedding(embedding, "humbug_ti.ckpt")
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gm import config as configuration
from gm.checkpoints import config_choice, converted_cache, loading, networks, prediction_check
from gm.checkpoints.key_mapping import parameter_shapes
from gm.checkpoints.networks import WeightFiles
from gm.config import Config, RunConfig, SamplingConfig, cli, hub_models, schema
from gm.embeddings import io as embedding_io
from gm.embeddings.embedding import Embedding
from gm.errors import UserError
from gm.lora import merging
from gm.models import stable_diffusion
from gm.models.stable_diffusion import StableDiffusion
from gm.runtime import backend as backend_
from gm.runtime.backend import Backend
from gm.sampling import adjusted_embeddings, request, run
from gm.sampling.pipeline import Pipeline
from gm.training import embedding_files, setup, trainer
from gm.training.callbacks import Callback
from gm.training.step_result import StepResult

__all__ = [
    "Callback",
    "Embedding",
    "StepResult",
    "Toolkit",
    "generate",
    "load",
    "load_embedding",
    "save_embedding",
    "train",
    "train_concepts",
]

log = logging.getLogger("gm")


@dataclass(frozen=True)
class Toolkit:
    """A loaded model with its config and backend."""

    config: Config
    model: StableDiffusion
    backend: Backend

    @cached_property
    def pipeline(self) -> Pipeline:
        """The sampling pipeline, created at first use: it keeps the VAE in memory."""
        return Pipeline(self.model, self.backend, self.config.run.pooling)


def load(config: Config | str | Path | None = None, **sections: dict[str, Any]) -> Toolkit:
    """Set up the device and load the model of `config`, a Config or the path of a YAML file.

    `sections` override options of a YAML file: `run={"lora_weight": ["detail.safetensors:0.8"]}`. Without a `config` it
    is the shipped one of the family of `run={"weight": …}`. Raises UserError for missing weights, weights or LoRAs that
    do not fit, a UNet that does not predict what the config says, and a refiner.
    """
    if config is None:
        config, sections = _chosen_config(sections)
    if not isinstance(config, Config):
        config = configuration.load(config, sections)
    elif sections:
        raise UserError("options go into the Config, or give the path of a YAML file and options beside it")
    config.model.require("base")
    if hub_models.is_name(config.run.weight):
        config = dataclasses.replace(
            config,
            run=dataclasses.replace(config.run, weight=hub_models.locate(config.run), revision=None, variant=None),
        )
    if not Path(config.run.weight).exists():
        weight, *loras = config.run.weight.split(",")
        if loras and Path(weight).exists():  # mindone's way to give a LoRA
            raise UserError(f"--weight {config.run.weight} names several files; give --lora_weight {' '.join(loras)}")
        raise UserError(
            f"no weights {config.run.weight}; --weight names them, tools/convert_weights/convert.py converts them"
        )
    networks.check_paths(config.run.networks)
    backend = backend_.setup(config.run, config.training.is_parallel, config.training.distributed_timeout)
    started = time.perf_counter()
    model = stable_diffusion.build(config.model, backend.dtype)
    weight = config.run.weight
    if config.run.cache_weights:
        weight = str(converted_cache.converted(Path(weight), config.model, tuple(config.run.networks)))
    files = WeightFiles(weight, config.run.networks)
    changes = merging.prepare(config.run.lora_weight, parameter_shapes(model), config.model)
    loading.load_weights(model, files, config.model, backend.keep_half_above, changes=changes)
    prediction_check.check_prediction(model, str(config.run.unet or config.run.weight))
    if config.training.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    log.info("loaded %s in %.1f s", ", ".join(files.paths), time.perf_counter() - started)
    return Toolkit(config, model, backend)


def _chosen_config(sections: dict[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    """Return the shipped config of the weights in `sections`, which are found on the Hub first, and the options."""
    run = sections.get("run", {})
    if "weight" not in run:
        raise UserError('give the path of a YAML file, or the weights alone: load(run={"weight": "model.safetensors"})')
    weight = hub_models.locate(schema.merge(RunConfig, {"load": run}, "run."))
    config, of_weight = config_choice.config_for(weight)
    located = {"run": {**run, "weight": weight, "revision": None, "variant": None}}
    return config, cli.merge_sections(of_weight, {**sections, **located})


def train(
    toolkit: Toolkit,
    data_path: str | Path,
    placeholder_token: str,
    *,
    callbacks: Sequence[Callback] = (),
    training: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    loss: dict[str, Any] | None = None,
    **concept: Any,
) -> Embedding:
    """Train `placeholder_token` on the images in the folder `data_path`; return the embedding. Writes no files.

    `concept`, `training`, `data` and `loss` override options of those config sections (`num_vectors=4`).
    """
    options = {"placeholder_token": placeholder_token, "data_path": str(data_path), **concept}
    sections = {"training": training, "data": data, "loss": loss}
    return train_concepts(toolkit, [options], callbacks=callbacks, **sections)[0]


def train_concepts(
    toolkit: Toolkit,
    concepts: Sequence[dict[str, Any]],
    *,
    callbacks: Sequence[Callback] = (),
    training: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    loss: dict[str, Any] | None = None,
) -> list[Embedding]:
    """Train several concepts together; return their embeddings, a negative one last. Writes no files.

    `concepts` are entries of the option of that name: `{"placeholder_token": "<a>", "data_path": "a"}`,
    `{"placeholder_token": "<b>", "negative": True}`. The other arguments override options of their config sections.
    """
    base = toolkit.config
    config = dataclasses.replace(
        base,
        training=dataclasses.replace(base.training, **training or {}),
        data=dataclasses.replace(base.data, **data or {}),
        loss=dataclasses.replace(base.loss, **loss or {}),
    )
    config = configuration.with_concepts(config, concepts)
    configuration.check(config)
    training_run = trainer.prepare(toolkit.model, setup.prepare(config), toolkit.backend)
    training_run.callbacks = callbacks
    result = training_run.train()
    return embedding_files.embeddings(
        training_run.setup, training_run.state.vector_arrays(), training_run.base_model, result.step
    )


def generate(
    toolkit: Toolkit, prompt: str | Sequence[str], concepts: Sequence[Embedding] = (), **sampling: Any
) -> list[np.ndarray]:
    """Generate one image per prompt, uint8 [H, W, 3]; image k has the seed `seed` + k.

    `sampling` overrides options of that config section (`seed=7, sample_step=20`, or `task="img2img", img=["a.png"]`
    with one initial image; `embedding_adjust="0.5,0.2"`). Raises UserError for invalid options.
    """
    options: SamplingConfig = dataclasses.replace(toolkit.config.sampling, **sampling)
    config = dataclasses.replace(toolkit.config, sampling=options)
    configuration.check(config)
    request.check(config.model, options)
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    of_each = [dataclasses.replace(options, prompt=each) for each in prompts] or [options]
    embeddings = adjusted_embeddings.load(concepts, of_each, config.model)
    requests = request.image_requests(prompts, options, config.model, embeddings)
    grids = request.prompt_grids(requests, options, config.model)
    if len(grids) != 1:
        raise UserError(f"there are {len(grids)} images to start from; give one a call")
    steps = run.generate_grid(toolkit.pipeline, grids[0], embeddings, options)
    return [image for progress in steps for image in progress.images]


def load_embedding(path: str | Path) -> Embedding:
    """Read an embedding file of one placeholder token, of SDXL or of Stable Diffusion 1 or 2.

    `generate` refuses it with a model of another family. Raises UserError as `gm.embeddings.io.load` does.
    """
    return embedding_io.load(path, family=None)


save_embedding = embedding_io.save
