"""The second model, which draws the last steps: SDXL's refiner (Podell et al., 2023, section 2.5)."""

from __future__ import annotations

import logging
from pathlib import Path

from gm import config as configuration
from gm.checkpoints import loading
from gm.config import SamplingConfig
from gm.config.model import ModelConfig
from gm.diffusion import schedule
from gm.errors import UserError
from gm.models import sdxl
from gm.models.sdxl import SDXL
from gm.runtime.backend import Backend

log = logging.getLogger("gm")


def check(sampling: SamplingConfig, base: ModelConfig) -> ModelConfig:
    """Return the refiner's config; UserError if it is no refiner, does not fit the base model, or has no weights."""
    model = configuration.load(sampling.pipeline_config).model
    model.require("refiner")
    if model.vae != base.vae or model.schedule != base.schedule:
        raise UserError(
            f"--pipeline_config {sampling.pipeline_config}: {model.version} has other latents or noise levels than "
            f"{base.version}; a refiner goes on from its latents, so give the one made for it"
        )
    if model.text_encoder_2.width != base.text_encoder_2.width:
        raise UserError(
            f"--pipeline_config {sampling.pipeline_config}: {model.version} reads words {model.text_encoder_2.width} "
            f"wide, {base.version} {base.text_encoder_2.width}; give the refiner made for it"
        )
    if schedule.step_count(sampling.stage2strength, sampling.sample_step) < 1:
        raise UserError(
            f"--stage2strength {sampling.stage2strength} of {sampling.sample_step} steps leaves the refiner none; "
            f"give at least {1 / sampling.sample_step:.2g}, or leave --add_pipeline out"
        )
    if not Path(sampling.pipeline_weight).exists():
        raise UserError(
            f"no weights {sampling.pipeline_weight}; --pipeline_weight names the refiner's, "
            "tools/convert_weights/convert.py makes them"
        )
    return model


def load(sampling: SamplingConfig, base: ModelConfig, backend: Backend) -> SDXL:
    """Return the refiner, loaded, without its autoencoder, which is the base model's; UserError as `check` does."""
    config = check(sampling, base)
    model = sdxl.build(config, backend.dtype)
    loading.load_weights(model, sampling.pipeline_weight, config, backend.keep_half_above)
    model.release_vae()
    log.info("loaded %s", sampling.pipeline_weight)
    return model
