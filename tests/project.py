"""The smallest model with the published vocabulary, its weights and some images, as files the scripts can use."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from PIL import Image

from examples.tiny_sdxl.random_weights import values
from gm import config as configuration
from gm.checkpoints import containers, key_mapping, loading
from gm.checkpoints.lazy_tensor import in_memory
from gm.config import Config
from gm.models.stable_diffusion import StableDiffusion, build
from gm.runtime import rng
from gm.runtime.backend import Backend
from gm.training import setup, trainer
from gm.training.callbacks import Callback
from tests.reference.configs import REFINER

Call = Callable[..., tuple[int, str, str]]
Once = Callable[[str, Callable[[Path], None]], Path]  # the file of a name, made by the first that asks for it

YAML = """
model:
  version: smallest
  resolution: 16
  unet: {model_channels: 16, channel_mult: [1, 2], num_res_blocks: 1, transformer_depth: [1, 1], num_head_channels: 8,
    context_dim: 40, adm_in_channels: 72, norm_num_groups: 4}
  text_encoder_1: {width: 16, layers: 2, heads: 2}
  text_encoder_2: {width: 24, layers: 2, heads: 2}
  vae: {channels: 8, channel_mult: [1, 2], num_res_blocks: 1, norm_num_groups: 4}
run: {device_target: CPU, weight: "%(folder)s/weights.ckpt", ms_mode: 1}
concept: {data_path: "%(folder)s/images", placeholder_token: <toy>, num_vectors: 2}
training: {learning_rate: 1.0e-2, total_step: 4, save_path: "%(folder)s/runs"}
sampling: {sample_step: 3, prompt: a <toy> on a table, save_path: "%(folder)s/outputs"}
"""

# For a command that needs all cores, also from a worker of pytest that has one only.
ALL_CORES = ("taskset", "--cpu-list", f"0-{(os.cpu_count() or 1) - 1}") if shutil.which("taskset") else ()
# Not bound to a core each: of two ranks at different speeds one would wait too long for what the other compiles.
MPIRUN = (*ALL_CORES, "mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-n", "2")


class Workshop:
    """A folder with `config.yaml`, `weights.ckpt` and `images/`; `model` is loaded and shared.

    `refiner.yaml` and `refiner.ckpt` are a refiner that goes with it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.yaml = folder, folder / "config.yaml"
        self.yaml.write_text(YAML % {"folder": folder})
        self.model: StableDiffusion = build(self.config().model)
        _write_weights(self.model, folder / "weights.ckpt", 5)
        configuration.save(Config(model=REFINER), folder / "refiner.yaml")
        _write_weights(build(REFINER), folder / "refiner.ckpt", 6)
        (folder / "images").mkdir()
        for number in range(3):
            noise = rng.generator(number, "picture").integers(0, 256, (20, 24 + number, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / "images" / f"{number}.png")

    def config(self, **sections: dict[str, Any]) -> Config:
        """Return the config with single options replaced: `training={"total_step": 8}`."""
        return configuration.load(self.yaml, sections)


def _write_weights(model: StableDiffusion, path: Path, seed: int) -> None:
    layout = key_mapping.parameter_shapes(model)
    weights = {name: values(key_mapping.published_name(name), shape, seed) for name, shape in layout.items()}
    containers.write(path, {name: in_memory(w.astype(np.float32)) for name, w in weights.items()})


def whole_run(config: Config, spoil: Callable[[StableDiffusion], None] = lambda model: None) -> Path:
    """Train as the script does, in PyNative mode, on a model of its own that `spoil` may damage first."""
    return whole_runs(config, spoil)[0]


def whole_runs(
    config: Config, spoil: Callable[[StableDiffusion], None] = lambda model: None, callbacks: Sequence[Callback] = ()
) -> list[Path]:
    """Do as `whole_run` and return the file of every concept."""
    model = build(config.model)  # a run may give the autoencoder away
    loading.load_weights(model, config.run.weight, config.model)
    spoil(model)
    return trainer.run(model, setup.prepare(config), Backend("CPU", graph=False, dtype=ms.float32), callbacks)
