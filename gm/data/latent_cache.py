"""Images as latents, encoded once: each step draws its latents from the cached posterior."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from mindspore import Tensor

from gm.data import masks
from gm.data.image import CroppedImage, flip_horizontal
from gm.models.vae import AutoencoderKL


@dataclass(frozen=True)
class LatentCache:
    """The posteriors of the images, for each float32 [variants, z, h, w]; variant 1 is the mirrored image.

    `sizes` [images, variants, 6]: original height and width, crop top and left, target height and width.
    `weights`, for each image [variants, h, w]: how much the error at each place counts; None if all count alike.
    """

    mean: Sequence[np.ndarray]
    log_variance: Sequence[np.ndarray]
    sizes: np.ndarray
    scale_factor: float
    weights: Sequence[np.ndarray] | None = None

    def draw(self, image: int, variant: int, noise: np.ndarray) -> np.ndarray:
        """Return scaled latents [z, h, w] of the posterior's distribution, given standard-normal `noise`."""
        deviation = np.exp(0.5 * self.log_variance[image][variant])
        return (self.mean[image][variant] + deviation * noise) * np.float32(self.scale_factor)


def encode(
    vae: AutoencoderKL,
    images: Sequence[CroppedImage],
    flip: bool,
    scale_factor: float,
    unmasked_weight: float = 0.0,
) -> LatentCache:
    """Encode every image, and with `flip` its mirror image; one at a time, to keep memory small.

    What an image's mask leaves out counts `unmasked_weight` of what it does not.
    """
    means, log_variances, sizes, weights = [], [], [], []
    for image in images:
        shown = (image, flip_horizontal(image)) if flip else (image,)
        posteriors = [[t.asnumpy()[0] for t in vae.encode(Tensor(each.pixels[None]))] for each in shown]
        means.append(np.stack([mean for mean, _ in posteriors]))
        log_variances.append(np.stack([log_variance for _, log_variance in posteriors]))
        sizes.append([[*each.original, *each.crop, *each.pixels.shape[1:]] for each in shown])
        kept = [np.ones(each.pixels.shape[1:], np.float32) if each.mask is None else each.mask for each in shown]
        reduction = image.pixels.shape[1] // means[-1].shape[2]
        weights.append(masks.of_latents(np.stack(kept), reduction, unmasked_weight))
    masked = any(image.mask is not None for image in images)
    return LatentCache(means, log_variances, np.asarray(sizes, np.float32), scale_factor, weights if masked else None)
