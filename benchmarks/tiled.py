"""Workers that decode images: python -m benchmarks.tiled whole|tiles SIZE PIXELS TILE FILE."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.models import ROOT, SIZES, Size
from benchmarks.worker import Work, serve
from gm.config import SamplingConfig
from gm.models.sdxl import SDXL

SIDES = ("whole", "tiles")


def set_up(side: str, size: Size, pixels: int, tile: int, file: Path) -> tuple[dict[str, Any], Work]:
    """Return a worker that decodes one image a piece; what it makes of all of them is written to `file`."""
    from gm.runtime import backend
    from gm.sampling.vae_decode import VAEDecoder

    config = size.config()
    model = vae(size)
    decoder = VAEDecoder(model, backend.setup(config.run))
    sampling = SamplingConfig(vae_tiling=side == SIDES[1], vae_tile_size=tile, vae_slicing=True)
    scaled = latents(model, size, pixels)
    np.save(file, decoder.decode(scaled, sampling))

    def work() -> dict[str, Any]:
        decoder.decode(scaled[:1], sampling)
        return {}

    return {}, work


def vae(size: Size) -> SDXL:
    """Return a model with an autoencoder and nothing else: the shipped model's, or random weights."""
    from mindspore import Tensor

    from gm.checkpoints import containers, key_mapping
    from gm.models import sdxl
    from gm.runtime import rng

    model = sdxl.build(size.config().model)
    published = containers.read(ROOT / size.published).tensors if size.published else {}
    for parameter in model.first_stage_model.get_parameters():
        name, shape = key_mapping.published_name(parameter.name), tuple(parameter.shape)
        values = published[name].read() if published else rng.normal(shape, 0, name) / np.prod(shape[1:]) ** 0.5
        parameter.set_data(Tensor(values.astype(np.float32)))
    return model


def latents(model: SDXL, size: Size, pixels: int) -> np.ndarray:
    """Return the scaled latents of the size's images, `pixels` a side; random ones if the weights are random."""
    from gm.data import image_folder
    from gm.runtime import rng
    from gm.sampling import init_image

    if size.published:
        return init_image.encode(model, image_folder.read(ROOT / size.images, pixels))
    config = model.config.vae
    return rng.normal((1, config.latent_channels, *2 * [pixels // config.reduction]), 0, "latents")


def main() -> None:
    side, size, pixels, tile, file = sys.argv[1:]
    serve(lambda: set_up(side, SIZES[size], int(pixels), int(tile), Path(file)))


if __name__ == "__main__":
    main()
