"""One small model on both sides, each built when first asked for."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mindspore as ms
import numpy as np
from mindspore import Tensor

from gm.config.model import ModelConfig
from gm.models import sdxl
from gm.models.sdxl import SDXL
from tests.reference.configs import ALL, SEEDS
from tests.reference.published import published_name, write_published

if TYPE_CHECKING:
    from tests.reference.networks import Reference


class Case:
    """A configuration by name, its random checkpoint at `path`, our `model` and the `reference`.

    All are shared by the whole test session: what changes a weight puts it back.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self.config: ModelConfig = ALL[name]
        self.path = folder / f"{name}.safetensors"
        self.weights = write_published(self.config, self.path, SEEDS[name])

    @cached_property
    def model(self) -> SDXL:
        return filled(self.config, self.weights, ms.float32)

    @cached_property
    def reference(self) -> Reference:
        from tests.reference import networks  # takes seconds to import, and not every test needs it

        return networks.load(self.config, self.path, self.folder)


def filled(config: ModelConfig, weights: dict[str, np.ndarray], dtype: Any) -> SDXL:
    """Return our model with `weights` by published name; by hand, so that loading is tested elsewhere."""
    model = sdxl.build(config, dtype)
    for parameter in model.get_parameters():
        parameter.set_data(Tensor(weights[published_name(parameter.name)], parameter.dtype))
    return model
