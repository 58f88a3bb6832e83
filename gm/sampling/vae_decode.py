"""Latents to images: whole or in overlapping tiles, and cheap previews of one pixel a latent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise

import numpy as np
from mindspore import Tensor, nn

from gm.config import SamplingConfig
from gm.config.networks import VAEConfig
from gm.errors import UserError
from gm.models.stable_diffusion import StableDiffusion
from gm.runtime import rng
from gm.runtime.backend import Backend, compile_cell
from gm.sampling import finite

_OVERLAP = 0.25  # least share of a tile that its neighbor decodes, too
_MIN_OVERLAP = 8  # latents of that at least, where half a tile has as many: fewer show as a grid
_HIDDEN = 2  # latents at the edge of a tile that get no weight: the network's zero padding shows there
_PATCHES, _PATCH_SIZE = 6, 4  # colors a side of the image that previews are fitted to, and latents a side of each


def latent_tile_size(sampling: SamplingConfig, config: VAEConfig) -> int | None:
    """Return the side of a tile in latents, None without tiling; UserError if that is not a whole number."""
    if not sampling.vae_tiling:
        return None
    size, remainder = divmod(sampling.vae_tile_size, config.downsample_factor)
    if remainder:
        raise UserError(
            f"--vae_tile_size is {sampling.vae_tile_size}; it must be a multiple of {config.downsample_factor}, "
            "the VAE's reduction"
        )
    return size


def tile_starts(length: int, tile_size: int) -> list[int]:
    """Return where the tiles along an axis of `length` start: evenly spread, as few as overlap enough."""
    if length <= tile_size:
        return [0]
    overlap = max(math.ceil(_OVERLAP * tile_size), min(_MIN_OVERLAP, tile_size // 2))
    last = math.ceil((length - overlap) / (tile_size - overlap)) - 1
    return [(length - tile_size) * k // last for k in range(last + 1)]


def blend_weights(starts: list[int], tile_size: int, hidden: int) -> np.ndarray:
    """Return the weight of each tile at each place of an axis, float32 [tiles, length]; each column sums to 1.

    Where two tiles overlap, one fades out linearly as the other fades in. There the last `hidden` places of a tile, or
    a quarter of the overlap if that is less, have weight 0.
    """
    weights = np.zeros((len(starts), starts[-1] + tile_size))
    for k, start in enumerate(starts):
        weights[k, start : start + tile_size] = 1.0
    for k, (start, next_start) in enumerate(pairwise(starts)):
        overlap = start + tile_size - next_start
        margin = min(hidden, overlap / 4)
        rising = np.clip((np.arange(tile_size) + 0.5 - margin) / (overlap - 2 * margin), 0.0, 1.0)
        weights[k, start : start + tile_size] *= rising[::-1]
        weights[k + 1, next_start : next_start + tile_size] *= rising
    return (weights / weights.sum(axis=0)).astype(np.float32)


def tile_axis(length: int, tile_size: int, reduction: int) -> tuple[list[int], np.ndarray]:
    """Return where the tiles along an axis start, in latents, and their blend weights at each pixel.

    `length` and `tile_size` are in latents, of `reduction` pixels each.
    """
    starts = tile_starts(length, tile_size)
    pixel_starts = [reduction * start for start in starts]
    return starts, blend_weights(pixel_starts, reduction * min(length, tile_size), reduction * _HIDDEN)


def _array(latents: np.ndarray | Tensor) -> np.ndarray:
    return np.asarray(latents.asnumpy() if isinstance(latents, Tensor) else latents, np.float32)


def _with_ones(latents: np.ndarray) -> np.ndarray:
    """Return `latents` [N, z, h, w] with one more channel, of ones."""
    return np.concatenate([latents, np.ones_like(latents[:, :1])], axis=1)


def _enlarge(values: np.ndarray, factor: int) -> np.ndarray:
    return values.repeat(factor, axis=1).repeat(factor, axis=2)


def _to_uint8(levels: np.ndarray) -> np.ndarray:
    """Return `levels` [..., 3, H, W] as images uint8 [..., H, W, 3]."""
    return np.ascontiguousarray(np.moveaxis(np.rint(np.clip(levels, 0.0, 255.0)).astype(np.uint8), -3, -1))


class DecodeLevels(nn.Cell):
    """Scaled latents → levels [N, 3, H, W], 0 black and 255 white; the network may exceed both."""

    def __init__(self, model: StableDiffusion) -> None:
        super().__init__(auto_prefix=False)
        self.vae = model.first_stage_model
        self.scale = model.config.vae.scale_factor

    def construct(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents / self.scale) * 127.5 + 127.5


class VAEDecoder:
    """A model's VAE as a decoder; it keeps its compiled graph, and the fit for previews, between calls.

    It holds the VAE: a model that has released it cannot be given.
    """

    def __init__(self, model: StableDiffusion, backend: Backend) -> None:
        self.vae = model.first_stage_model
        self.config = model.config.vae
        self.decode_levels = compile_cell(DecodeLevels(model), backend.graph, "the decoder")

    def decode(self, latents: np.ndarray | Tensor, sampling: SamplingConfig, names: Sequence[str] = ()) -> np.ndarray:
        """Return the images uint8 [N, H, W, 3] of scaled `latents` [N, z, h, w].

        With `vae_slicing` they are decoded one after the other, and with `vae_tiling` those larger than a tile in tiles
        of one shape; each pixel is then the weighted mean of its tiles. UserError for a tile size that does not fit,
        and for an image that is not finite, by its name in `names`.
        """
        values = _array(latents)
        tile_size = latent_tile_size(sampling, self.config)
        if tile_size is not None and max(values.shape[2:]) > tile_size:
            decoded = (self._decode_tiled(each, tile_size)[None] for each in values)
        else:
            parts = np.split(values, len(values)) if sampling.vae_slicing else [values]
            decoded = (self.decode_levels(Tensor(part)).asnumpy() for part in parts)
        images: list[np.ndarray] = []
        for levels in (image for part in decoded for image in part):
            name = names[len(images)] if len(images) < len(names) else f"image {len(images) + 1}"
            finite.check_decoded(levels, name)
            images.append(_to_uint8(levels))
        return np.stack(images)

    def preview(self, latents: np.ndarray | Tensor) -> np.ndarray:
        """Return small images uint8 [N, h, w, 3] of scaled `latents` [N, z, h, w], a pixel each."""
        return _to_uint8(np.einsum("nzhw,zc->nchw", _with_ones(_array(latents)), self.latent_rgb_factors))

    @cached_property
    def latent_rgb_factors(self) -> np.ndarray:
        """Levels of red, green and blue per unit of each channel of a scaled latent, then a constant: [z + 1, 3].

        The least-squares fit to `color_patches`, computed on first use.
        """
        latents, levels = self.color_patches()
        inputs = _with_ones(latents[None])[0]
        factors, *_ = np.linalg.lstsq(inputs.reshape(len(inputs), -1).T, levels.reshape(3, -1).T, rcond=None)
        return factors.astype(np.float32)

    def color_patches(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the scaled latents [z, h, w] of an image of random colors, and its levels [3, h, w] there."""
        colors = rng.generator(0, "preview").uniform(0.0, 255.0, (3, _PATCHES, _PATCHES)).astype(np.float32)
        levels = _enlarge(colors, _PATCH_SIZE)
        image = _enlarge(levels, self.config.downsample_factor) / 127.5 - 1
        mean, _ = self.vae.encode(Tensor(image[None]))
        return mean.asnumpy()[0] * np.float32(self.config.scale_factor), levels

    def _decode_tiled(self, latents: np.ndarray, tile_size: int) -> np.ndarray:
        """Return the levels [3, H, W] of `latents` [z, h, w], decoded in tiles."""
        scale = self.config.downsample_factor
        height, width = (min(side, tile_size) for side in latents.shape[1:])
        tops, row_weights = tile_axis(latents.shape[1], tile_size, scale)
        lefts, column_weights = tile_axis(latents.shape[2], tile_size, scale)
        levels = np.zeros((3, row_weights.shape[1], column_weights.shape[1]), np.float32)
        for i, top in enumerate(tops):
            y = slice(scale * top, scale * (top + height))
            for j, left in enumerate(lefts):
                x = slice(scale * left, scale * (left + width))
                tile = np.ascontiguousarray(latents[None, :, top : top + height, left : left + width])
                weights = row_weights[i, y, None] * column_weights[j, x]
                levels[:, y, x] += weights * self.decode_levels(Tensor(tile)).asnumpy()[0]
        return levels
