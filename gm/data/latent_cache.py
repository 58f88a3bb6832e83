"""Latent cache: the posteriors of the training images, encoded once; each step samples its latents from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from mindspore import Tensor

from gm.data import masks
from gm.data.image import CroppedImage, flip_horizontal
from gm.errors import UserError
from gm.models.vae import AutoencoderKL


@dataclass(frozen=True)
class LatentCache:
    """The posteriors of the training images, with their size conditioning and loss weights.

    The first axis of each array below is 1 long, or 2 long with random flips: index 1 is the flipped image.

    mean, log_variance: of each image, float32 [flips, z, h, w]
    size_conditioning: float32 [images, flips, 6]: original height and width, crop top and left, target height and width
    scale_factor: of latents, as the model's config has it
    loss_weights: of each image, float32 [flips, h, w], the weight of each latent in the loss; None is 1 everywhere
    """

    mean: Sequence[np.ndarray]
    log_variance: Sequence[np.ndarray]
    size_conditioning: np.ndarray
    scale_factor: float
    loss_weights: Sequence[np.ndarray] | None = None

    def sample(self, image: int, flip: int, noise: np.ndarray) -> np.ndarray:
        """Return scaled latents [z, h, w], sampled from the posterior with standard normal `noise`."""
        std = np.exp(0.5 * self.log_variance[image][flip])
        return (self.mean[image][flip] + std * noise) * np.float32(self.scale_factor)


def encode_images(
    vae: AutoencoderKL,
    images: Sequence[CroppedImage],
    flip: bool,
    scale_factor: float,
    unmasked_weight: float = 0.0,
) -> LatentCache:
    """Encode every image, and with `flip` its mirror image; one at a time, to keep memory small.

    `unmasked_weight` is the weight in the loss where an image's mask is 0, relative to that where it is 1. Raises
    UserError for an image whose posterior is not finite.
    """
    means: list[np.ndarray] = []
    log_variances: list[np.ndarray] = []
    sizes: list[list[list[int]]] = []
    weights: list[np.ndarray] = []
    for image in images:
        flips = (image, flip_horizontal(image)) if flip else (image,)
        posteriors = [[tensor.asnumpy()[0] for tensor in vae.encode(Tensor(each.pixels[None]))] for each in flips]
        _check_finite(posteriors, image.name)
        means.append(np.stack([mean for mean, _ in posteriors]))
        log_variances.append(np.stack([log_variance for _, log_variance in posteriors]))
        sizes.append([[*each.original_size, *each.crop_top_left, *each.size] for each in flips])
        pixel_masks = np.stack([np.ones(each.size, np.float32) if each.mask is None else each.mask for each in flips])
        reduction = image.pixels.shape[1] // means[-1].shape[2]
        weights.append(masks.loss_weights(pixel_masks, reduction, unmasked_weight))
    masked = any(image.mask is not None for image in images)
    return LatentCache(means, log_variances, np.asarray(sizes, np.float32), scale_factor, weights if masked else None)


def _check_finite(posteriors: Sequence[Sequence[np.ndarray]], name: str) -> None:
    if not np.isfinite(posteriors).all():
        raise UserError(
            f"the VAE encodes {name} to values that are not finite; give another VAE with --vae, such as "
            "sdxl_vae.safetensors"
        )
