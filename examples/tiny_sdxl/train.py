"""Train a tiny model from scratch on two cores, and write a checkpoint in the published format.

    mpirun -n 2 --bind-to core python examples/tiny_sdxl/train.py --is_parallel True
    mpirun -n 2 --bind-to core python examples/tiny_sdxl/train.py --is_parallel True \
        --config configs/training/tiny_sd1_textual_inversion.yaml --state runs/tiny_sd1 --updates 6000 \
        --autoencoder checkpoints/tiny_sd_xl_base.safetensors --target checkpoints/tiny_sd_v1.safetensors

It can be stopped at any time: the same command resumes from the folder `--state`.
"""

import dataclasses
import json
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one core per rank
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from mindspore import Tensor

from examples.tiny_sdxl import diffusion, trainer, vae
from examples.tiny_sdxl.trainer import Hyperparameters, Trainer
from gm import config as configuration
from gm.checkpoints import containers, key_mapping
from gm.checkpoints.lazy_tensor import in_memory
from gm.config import RunConfig, cli
from gm.config.parser import Parser
from gm.errors import UserError
from gm.models import stable_diffusion
from gm.models.stable_diffusion import StableDiffusion
from gm.runtime import backend
from gm.runtime.backend import Backend

AUTOENCODER = Hyperparameters(updates=3000, batch=8, rate=2e-3)
DIFFUSION = Hyperparameters(updates=8000, batch=48, rate=1.5e-3)
SCENES = 16000  # number of encoded scenes; captions and noise are new for every sample
_EVERY = 10  # updates per point of the loss curves
_ZERO_INITIALIZED = ("conv2.weight", "out_layers.3.weight", "proj_out.weight", "out.2.weight")


def train_autoencoder(
    model: StableDiffusion, device: Backend, state: Path, seed: int, hyperparameters: Hyperparameters
) -> list[float]:
    """Train the autoencoder, resuming from `state`, and standardize its latents; return the losses."""
    config, network = model.config, model.first_stage_model
    parameters = list(network.get_parameters())
    trainer.initialize(parameters, seed, _ZERO_INITIALIZED)
    autoencoder = Trainer(vae.Loss(network), parameters, hyperparameters, device)
    shape = vae.latent_shape(config)
    trainer.train(
        autoencoder,
        lambda update: vae.batch(_samples(update, hyperparameters, device), seed, config.resolution, shape),
        state / "autoencoder.npz",
        log,
    )
    autoencoder.use_average()
    standardize(model, seed)
    return autoencoder.curve


def read_autoencoder(model: StableDiffusion, source: Path, seed: int) -> None:
    """Take the autoencoder of another checkpoint, and standardize its latents for this model's scale factor."""
    tensors = containers.read_weights(source).tensors
    for p in model.first_stage_model.get_parameters():
        p.set_data(Tensor(tensors[key_mapping.published_name(p.name)].read().astype(np.float32).reshape(p.shape)))
    standardize(model, seed)


def standardize(model: StableDiffusion, seed: int) -> None:
    sample = vae.images(range(256), seed + 1, model.config.resolution)
    vae.standardize(model.first_stage_model, model.config.vae.scale_factor, sample)


def train_diffusion(
    model: StableDiffusion,
    latents: np.ndarray,
    device: Backend,
    state: Path,
    seed: int,
    hyperparameters: Hyperparameters,
) -> list[float]:
    """Train UNet and text encoders, resuming from `state`, and fill the token tables; return the losses."""
    batches = diffusion.Batches(latents, seed, model.config)
    embeddings = diffusion.embedding_parameters(len(batches.known), model.config, seed)
    parameters = diffusion.trainable_parameters(model)
    trainer.initialize(parameters, seed, _ZERO_INITIALIZED)
    diffusion.fill_token_tables(model, batches.known, embeddings, seed)
    network = Trainer(diffusion.Loss(model, embeddings), [*parameters, *embeddings], hyperparameters, device)
    trainer.train(
        network, lambda update: batches.batch(_samples(update, hyperparameters, device)), state / "diffusion.npz", log
    )
    network.use_average()
    diffusion.fill_token_tables(model, batches.known, embeddings, seed)
    return network.curve


def _samples(update: int, hyperparameters: Hyperparameters, device: Backend) -> range:
    """Return the numbers of this rank's samples of `update`."""
    share = hyperparameters.batch // device.world_size
    first = update * hyperparameters.batch + device.rank * share
    return range(first, first + share)


def log(text: str) -> None:
    print(text, flush=True)


def write(model: StableDiffusion, target: Path) -> None:
    """Write the model under its published names, in float16."""
    tensors = {
        key_mapping.published_name(p.name): in_memory(p.asnumpy().astype(np.float16)) for p in model.get_parameters()
    }
    containers.write(target, tensors, {"format": "pt"})


def write_curves(curves: dict[str, list[float]], target: Path) -> None:
    """Write the losses as means of `_EVERY` updates."""
    means = {
        name: [float(f"{np.mean(losses[k : k + _EVERY]):.4g}") for k in range(0, len(losses), _EVERY)]
        for name, losses in curves.items()
    }
    target.write_text(json.dumps({"every": _EVERY} | means))


def main() -> None:
    parser = Parser("Train the tiny model from scratch on two cores, resuming where it was stopped.")
    parser.add_config("configs/training/tiny_textual_inversion.yaml")
    parser.add_path("--state", "folder of the state to resume from (default: %(default)s)", default="runs/tiny_model")
    parser.add_path("--autoencoder", "take the autoencoder of this checkpoint and do not train one", default="")
    parser.add_path("--target", "(default: %(default)s)", default="checkpoints/tiny_sd_xl_base.safetensors")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument(
        "--is_parallel", choices=("True", "False"), default="False", help="whether mpirun started several processes"
    )
    parser.add_argument("--ms_mode", type=int, choices=(0, 1), default=0, help="0 graph, 1 PyNative (default: 0)")
    for name, default in (
        ("autoencoder_updates", AUTOENCODER.updates),
        ("updates", DIFFUSION.updates),
        ("batch", DIFFUSION.batch),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help="(default: %(default)s)")
    parser.add_argument("--scenes", type=int, default=SCENES, help="number of scenes (default: %(default)s)")
    flags = parser.read()
    device = backend.setup(RunConfig(device_target="CPU", ms_mode=flags["ms_mode"]), flags["is_parallel"] == "True")
    first = dataclasses.replace(AUTOENCODER, updates=flags["autoencoder_updates"])
    second = dataclasses.replace(DIFFUSION, updates=flags["updates"], batch=flags["batch"])
    for hyperparameters in (first, second):
        if hyperparameters.batch % device.world_size:
            raise UserError(
                f"{device.world_size} ranks cannot share batches of {hyperparameters.batch}; start 1, 2, 4 or 8"
            )
    model = stable_diffusion.build(configuration.load(flags["config"]).model)
    state, seed = Path(flags["state"]), flags["seed"]
    state.mkdir(parents=True, exist_ok=True)
    curves = {}
    if flags["autoencoder"]:
        read_autoencoder(model, Path(flags["autoencoder"]), seed)
    else:
        curves["autoencoder"] = train_autoencoder(model, device, state, seed, first)
    latents = vae.encode(model, device, state / "latents.npy", seed, flags["scenes"])
    curves["diffusion"] = train_diffusion(model, latents, device, state, seed, second)
    if device.is_main_process:
        target = Path(flags["target"])
        write(model, target)
        write_curves(curves, target.with_name(f"{target.stem}_curves.json"))
        log(f"wrote {flags['target']}")
    device.barrier()


if __name__ == "__main__":
    cli.run(main)
