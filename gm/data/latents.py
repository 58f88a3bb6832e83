"""Pictures as latents, encoded once: each step draws its latents from the cached posterior."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from mindspore import Tensor

from gm.data import masks
from gm.data.folder import Picture, mirrored
from gm.networks.autoencoder import Autoencoder


@dataclass(frozen=True)
class Latents:
    """The posteriors of the pictures, float32 [pictures, variants, z, h, w]; variant 1 is the mirrored picture.

    `sizes` [pictures, variants, 6]: original height and width, crop top and left, target height and width.
    `weights` [pictures, variants, h, w]: how much the error at each place counts; None if all count alike.
    """

    mean: np.ndarray
    log_variance: np.ndarray
    sizes: np.ndarray
    scale_factor: float
    weights: np.ndarray | None = None

    def draw(self, picture: int, variant: int, noise: np.ndarray) -> np.ndarray:
        """Return scaled latents [z, h, w] of the posterior's distribution, given standard-normal `noise`."""
        deviation = np.exp(0.5 * self.log_variance[picture, variant])
        return (self.mean[picture, variant] + deviation * noise) * np.float32(self.scale_factor)


def encode(
    autoencoder: Autoencoder,
    pictures: Sequence[Picture],
    flip: bool,
    scale_factor: float,
    unmasked_weight: float = 0.0,
) -> Latents:
    """Encode every picture, and with `flip` its mirror image; one at a time, to keep memory small.

    What a picture's mask leaves out counts `unmasked_weight` of what it does not.
    """
    means, log_variances, sizes, shown_masks = [], [], [], []
    for picture in pictures:
        for shown in (picture, mirrored(picture)) if flip else (picture,):
            mean, log_variance = autoencoder.encode(Tensor(shown.pixels[None]))
            means.append(mean.asnumpy()[0])
            log_variances.append(log_variance.asnumpy()[0])
            sizes.append([*shown.original, *shown.crop, *shown.pixels.shape[1:]])
            shown_masks.append(np.ones(shown.pixels.shape[1:], np.float32) if shown.mask is None else shown.mask)
    weights = None
    if any(picture.mask is not None for picture in pictures):
        reduction = pictures[0].pixels.shape[1] // means[0].shape[1]
        weights = masks.of_latents(np.stack(shown_masks), reduction, unmasked_weight)
    shape = (len(pictures), 2 if flip else 1)
    return Latents(
        np.stack(means).reshape(*shape, *means[0].shape),
        np.stack(log_variances).reshape(*shape, *means[0].shape),
        np.asarray(sizes, np.float32).reshape(*shape, 6),
        scale_factor,
        None if weights is None else weights.reshape(*shape, *weights.shape[1:]),
    )
