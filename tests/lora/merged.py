"""Models with LoRAs merged into their weights."""

from __future__ import annotations

from pathlib import Path

import mindspore as ms
import numpy as np

from gm.checkpoints import loading
from gm.checkpoints.key_mapping import parameter_shapes
from gm.lora import merging
from gm.models import stable_diffusion
from gm.models.stable_diffusion import StableDiffusion
from gm.runtime.backend import DType
from tests.lora.conftest import factors
from tests.project import Workshop

UNET_WEIGHT = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"


def merged(
    workshop: Workshop, *loras: str | Path, dtype: DType = ms.float32, weights: Path | None = None
) -> StableDiffusion:
    config = workshop.config().model
    model = stable_diffusion.build(config, dtype)
    changes = merging.prepare(list(map(str, loras)), parameter_shapes(model), config)
    loading.load_weights(model, weights or workshop.folder / "weights.ckpt", config, changes=changes)
    return model


def values(model: StableDiffusion, name: str) -> np.ndarray:
    return next(p for p in model.get_parameters() if p.name == name).asnumpy()


def load_shape(workshop: Workshop, module: str) -> dict[str, np.ndarray]:
    return factors(module, values(workshop.model, UNET_WEIGHT).shape)
