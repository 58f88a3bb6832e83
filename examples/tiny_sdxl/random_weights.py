"""Write a checkpoint with seeded random weights in the published single-file format.

    python examples/tiny_sdxl/random_weights.py --target checkpoints/random.safetensors

Its images are noise, but it is a model of any family and size that a config describes, for tests and benchmarks of
conversion, training and sampling.
"""

from functools import partial

import numpy as np

from gm import config as configuration
from gm.checkpoints import containers, key_mapping
from gm.checkpoints.lazy_tensor import LazyTensor
from gm.config import cli
from gm.config.parser import Parser
from gm.models import stable_diffusion
from gm.runtime import rng


def values(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Return random weights for the published `name` that about preserve the variance of activations."""
    noise = rng.normal(shape, seed, name)
    if len(shape) >= 2:
        return noise * 0.5 if "token_embedding" in name else noise / np.prod(shape[1:]) ** 0.5
    is_norm = name.endswith("weight")  # the only vectors named weight are those of normalisations
    return 1.0 + 0.1 * noise if is_norm else 0.05 * noise


def main() -> None:
    parser = Parser("Write a checkpoint with seeded random weights in the published single-file format.")
    parser.add_config("configs/training/tiny_textual_inversion.yaml")
    parser.add_path("--target", "(default: %(default)s)", default="checkpoints/random.safetensors")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    flags = parser.read()
    model = stable_diffusion.build(configuration.load(flags["config"]).model)
    shapes = {key_mapping.published_name(name): shape for name, shape in key_mapping.parameter_shapes(model).items()}
    # Sampled lazily, one at a time, while writing: at full size all weights are 7 GB.
    tensors = {
        name: LazyTensor(shape, "float16", partial(_half, name, shape, flags["seed"])) for name, shape in shapes.items()
    }
    containers.write(flags["target"], tensors, {"format": "pt"})
    print(f"wrote {flags['target']}: {len(tensors)} tensors")


def _half(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.asarray(values(name, shape, seed), np.float16)


if __name__ == "__main__":
    cli.run(main)
