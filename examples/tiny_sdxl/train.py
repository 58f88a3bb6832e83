"""Train the tiny model from nothing, on two cores, and write it as a published checkpoint would be.

    mpirun -n 2 --bind-to core python examples/tiny_sdxl/train.py --is_parallel True

It can be stopped at any time and started again: it goes on from the folder `--state`, which also keeps the curves.
"""

import dataclasses
import json
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a rank has a core for itself
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from examples.tiny_sdxl import diffusion, learning, vae
from examples.tiny_sdxl.learning import Learner, Recipe
from gm import config as configuration
from gm.checkpoints import containers, key_mapping
from gm.checkpoints.lazy_tensor import in_memory
from gm.config import RunConfig, cli
from gm.errors import UserError
from gm.models import sdxl
from gm.models.sdxl import SDXL
from gm.runtime import backend
from gm.runtime.backend import Backend

AUTOENCODER = Recipe(updates=3000, batch=8, rate=2e-3)
DIFFUSION = Recipe(updates=8000, batch=48, rate=1.5e-3)
SCENES = 16000  # whose latents the diffusion half sees again and again, with other captions and noise
_EVERY = 10  # updates whose mean loss is one point of the curves
_QUIET = ("conv2.weight", "out_layers.3.weight", "proj_out.weight", "out.2.weight")


def train_autoencoder(model: SDXL, where: Backend, state: Path, seed: int, recipe: Recipe) -> list[float]:
    """Train the autoencoder, or take it as `state` has it finished, and standardise its latents; return the losses."""
    config, network = model.config, model.first_stage_model
    parameters = list(network.get_parameters())
    learning.initialise(parameters, seed, _QUIET)
    learner = Learner(vae.Loss(network), parameters, recipe, where)
    shape = vae.latent_shape(config)
    learning.run(
        learner,
        lambda update: vae.batch(_share(update, recipe, where), seed, config.resolution, shape),
        state / "autoencoder.npz",
        say,
    )
    learner.use_average()
    sample = vae.images(range(256), seed + 1, config.resolution)
    vae.standardise(network, config.vae.scale_factor, sample)
    return learner.curve


def train_diffusion(
    model: SDXL, latents: np.ndarray, where: Backend, state: Path, seed: int, recipe: Recipe
) -> list[float]:
    """Train UNet and encoders, and fill their token tables; return the losses."""
    loader = diffusion.Feed(latents, seed, model.config)
    rows = diffusion.rows(len(loader.known), model.config, seed)
    parameters = diffusion.trained(model)
    learning.initialise(parameters, seed, _QUIET)
    diffusion.fill_tables(model, loader.known, rows, seed)
    learner = Learner(diffusion.Loss(model, rows), [*parameters, *rows], recipe, where)
    learning.run(learner, lambda update: loader.batch(_share(update, recipe, where)), state / "diffusion.npz", say)
    learner.use_average()
    diffusion.fill_tables(model, loader.known, rows, seed)
    return learner.curve


def _share(update: int, recipe: Recipe, where: Backend) -> range:
    """Return the numbers of the samples that this rank shows in `update`."""
    share = recipe.batch // where.world
    first = update * recipe.batch + where.rank * share
    return range(first, first + share)


def say(text: str) -> None:
    print(text, flush=True)


def write(model: SDXL, target: Path) -> None:
    """Write the model under its published names, in float16."""
    tensors = {
        key_mapping.published_name(p.name): in_memory(p.asnumpy().astype(np.float16)) for p in model.get_parameters()
    }
    containers.write(target, tensors, {"format": "pt"})


def write_curves(curves: dict[str, list[float]], target: Path) -> None:
    """Write the losses, each the mean of `_EVERY` updates."""
    means = {
        name: [float(f"{np.mean(losses[k : k + _EVERY]):.4g}") for k in range(0, len(losses), _EVERY)]
        for name, losses in curves.items()
    }
    target.write_text(json.dumps({"every": _EVERY} | means))


def main() -> None:
    parser = cli.Parser("Train the tiny model from nothing, on two cores; it goes on where it was stopped.")
    parser.add_argument(
        "--config", default="configs/training/tiny_textual_inversion.yaml", help="(default: %(default)s)"
    )
    parser.add_argument("--state", default="runs/tiny_model", help="folder to go on from (default: %(default)s)")
    parser.add_argument("--target", default="checkpoints/tiny_sd_xl_base.safetensors", help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument(
        "--is_parallel", choices=("True", "False"), default="False", help="whether mpirun started several processes"
    )
    parser.add_argument("--ms_mode", type=int, choices=(0, 1), default=0, help="0 graph, 1 PyNative (default: 0)")
    for name, default in (("autoencoder_updates", AUTOENCODER.updates), ("updates", DIFFUSION.updates)):
        parser.add_argument(f"--{name}", type=int, default=default, help="(default: %(default)s)")
    parser.add_argument("--scenes", type=int, default=SCENES, help="whose latents are kept (default: %(default)s)")
    flags = parser.read()
    where = backend.setup(RunConfig(device_target="CPU", ms_mode=flags["ms_mode"]), flags["is_parallel"] == "True")
    for recipe in (AUTOENCODER, DIFFUSION):
        if recipe.batch % where.world:
            raise UserError(f"{where.world} ranks cannot share batches of {recipe.batch}; start 1, 2, 4 or 8")
    model = sdxl.build(configuration.load(flags["config"]).model)
    state, seed = Path(flags["state"]), flags["seed"]
    state.mkdir(parents=True, exist_ok=True)
    first = dataclasses.replace(AUTOENCODER, updates=flags["autoencoder_updates"])
    second = dataclasses.replace(DIFFUSION, updates=flags["updates"])
    curves = {"autoencoder": train_autoencoder(model, where, state, seed, first)}
    latents = vae.encode(model, where, state / "latents.npy", seed, flags["scenes"])
    curves["diffusion"] = train_diffusion(model, latents, where, state, seed, second)
    if where.is_main_process:
        target = Path(flags["target"])
        write(model, target)
        write_curves(curves, target.with_name(f"{target.stem}_curves.json"))
        say(f"wrote {flags['target']}")
    where.barrier()


if __name__ == "__main__":
    cli.run(main)
