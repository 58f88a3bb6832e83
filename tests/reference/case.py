"""One small model in MindSpore and PyTorch, each built on first access."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import mindspore as ms
import numpy as np
from mindspore import Tensor

from gm.config.model import ModelConfig
from gm.models import stable_diffusion
from gm.models.stable_diffusion import StableDiffusion
from gm.runtime.backend import DType
from tests.reference.configs import ALL, SEEDS, STABLE_DIFFUSION
from tests.reference.published import published_name, write_published

if TYPE_CHECKING:
    from tests.reference.networks import Reference


class Case:
    """A config by name, its random checkpoint at `path`, our `model` and the PyTorch `reference`.

    The test session shares them: a test that changes a weight restores it.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder
        self.config: ModelConfig = (ALL | STABLE_DIFFUSION)[name]
        self.path = folder / f"{name}.safetensors"
        self.weights = write_published(self.config, self.path, SEEDS[name])

    @cached_property
    def model(self) -> StableDiffusion:
        return filled(self.config, self.weights, ms.float32)

    @cached_property
    def reference(self) -> Reference:
        from tests.reference import networks  # takes seconds to import

        return networks.load(self.config, self.path, self.folder)


def filled(config: ModelConfig, weights: dict[str, np.ndarray], dtype: DType) -> StableDiffusion:
    """Return our model with `weights` by published name, set without `gm.checkpoints.loading`."""
    model = stable_diffusion.build(config, dtype)
    for parameter in model.get_parameters():
        parameter.set_data(Tensor(weights[published_name(parameter.name)], parameter.dtype))
    return model
