"""First part of the training: the autoencoder, on images of scenes, with latents scaled to unit variance at the end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from mindspore import Tensor, nn, ops

from examples.tiny_sdxl import rendering, world
from gm.config.model import ModelConfig
from gm.models.stable_diffusion import StableDiffusion
from gm.models.vae import AutoencoderKL
from gm.runtime import atomic_io, backend, rng
from gm.runtime.backend import Backend

_KL_WEIGHT = 5e-4  # of the mean over latents of their divergence from a standard normal distribution


class Loss(nn.Cell):
    """Absolute and squared reconstruction error, and the KL divergence of the latents (Kingma and Welling, 2014)."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__(auto_prefix=False)
        self.vae = vae

    def construct(self, images: Tensor, noise: Tensor) -> Tensor:
        mean, log_variance = self.vae.encode(images)
        error = self.vae.decode(mean + ops.exp(0.5 * log_variance) * noise) - images
        divergence = 0.5 * (mean * mean + ops.exp(log_variance) - 1.0 - log_variance)
        return error.abs().mean() + (error * error).mean() + _KL_WEIGHT * divergence.mean()


def images(indices: range, seed: int, side: int) -> np.ndarray:
    """Return images of scenes, float32 [N, 3, side, side] in -1…1."""
    arrays = [rendering.render(world.scene(seed, index), side) for index in indices]
    return np.stack(arrays).transpose(0, 3, 1, 2) / np.float32(127.5) - np.float32(1)


def batch(indices: range, seed: int, side: int, latent_shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Return the inputs of `Loss` for the samples `indices`."""
    noise = [rng.normal(latent_shape, seed, "autoencoder noise", index) for index in indices]
    return Tensor(images(indices, seed, side)), Tensor(np.stack(noise))


def standardize(vae: AutoencoderKL, scale_factor: float, sample: np.ndarray) -> None:
    """Fold an affine map into the two 1×1 convolutions around the latents: reconstructions stay the same, and latents
    times `scale_factor` have mean 0 and variance 1 in each channel, as the noise schedule assumes."""
    means = [vae.encode(Tensor(part))[0].asnumpy() for part in np.array_split(sample, max(1, len(sample) // 32))]
    latents = np.concatenate(means)
    centre, spread = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    gain = 1 / (spread * scale_factor)
    inner, outer = vae.quant_conv, vae.post_quant_conv
    weight, bias = inner.weight.asnumpy().copy(), inner.bias.asnumpy().copy()
    channels = len(gain)
    weight[:channels] *= gain[:, None, None, None]
    bias[:channels] = (bias[:channels] - centre) * gain
    bias[channels:] += 2 * np.log(gain)
    inner.weight.set_data(Tensor(weight))
    inner.bias.set_data(Tensor(bias))
    back = outer.weight.asnumpy()
    outer.bias.set_data(Tensor(outer.bias.asnumpy() + (back[:, :, 0, 0] * centre).sum(1)))
    outer.weight.set_data(Tensor(back / gain[None, :, None, None]))


def latent_shape(config: ModelConfig) -> tuple[int, int, int]:
    """Return [z, h, w] of one image."""
    side = config.resolution // config.vae.downsample_factor
    return config.vae.latent_channels, side, side


def encode(model: StableDiffusion, device: Backend, path: Path, seed: int, scenes: int) -> np.ndarray:
    """Return scaled latents of the first `scenes` of the world, [scenes, z, h, w], cached at `path`.

    Each rank encodes its part of every 64 scenes and adds zeros for the others.
    """
    if path.exists():
        return np.load(path)
    all_reduce_mean = backend.AllReduceMean(device.world_size)
    parts = []
    for first in range(0, scenes, 64):
        part = range(first, min(first + 64, scenes))
        own_batch = part[device.rank :: device.world_size]
        latents = np.zeros((len(part), *latent_shape(model.config)), np.float32)
        mean, _ = model.first_stage_model.encode(Tensor(images(own_batch, seed, model.config.resolution)))
        latents[device.rank :: device.world_size] = mean.asnumpy() * model.config.vae.scale_factor
        parts.append(all_reduce_mean(Tensor(latents)).asnumpy() * device.world_size)
    all_latents = np.concatenate(parts)
    if device.is_main_process:
        with atomic_io.atomic_write(path) as temporary, open(temporary, "wb") as file:
            np.save(file, all_latents)
    return all_latents
