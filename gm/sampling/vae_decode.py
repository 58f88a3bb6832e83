"""Latents to images: whole or in tiles that overlap, and cheap previews of one pixel a latent."""

from __future__ import annotations

import math
from functools import cached_property
from itertools import pairwise, product

import numpy as np
from mindspore import Tensor, nn

from gm.config import SamplingConfig
from gm.config.model import VAEConfig
from gm.errors import UserError
from gm.models.sdxl import SDXL
from gm.runtime import rng
from gm.runtime.backend import Backend, compile_cell

_OVERLAP = 0.25  # least part of a tile that its neighbour shows, too
_SHARED = 8  # latents of that at least, where half a tile has so many: fewer show as a grid
_HIDDEN = 2  # latents at the edge of a tile that are not shown: one sees there that the network pads with zeros
_PATCHES, _PATCH = 6, 4  # colours a side of the image that previews are fitted to, and latents a side of each


def tile_side(sampling: SamplingConfig, config: VAEConfig) -> int | None:
    """Return the side of a tile in latents, None for no tiles; UserError if that is not a whole number."""
    if not sampling.vae_tiling:
        return None
    side, rest = divmod(sampling.vae_tile_size, config.reduction)
    if rest:
        raise UserError(
            f"--vae_tile_size is {sampling.vae_tile_size}; it must be a multiple of {config.reduction}, "
            "the autoencoder's reduction"
        )
    return side


def starts(length: int, tile: int) -> list[int]:
    """Return where the tiles along `length` start: evenly spread, as few as let neighbours share enough."""
    if length <= tile:
        return [0]
    shared = max(math.ceil(_OVERLAP * tile), min(_SHARED, tile // 2))
    last = math.ceil((length - shared) / (tile - shared)) - 1
    return [(length - tile) * k // last for k in range(last + 1)]


def ramps(places: list[int], tile: int, hidden: int) -> np.ndarray:
    """Return how much each tile counts at each place of an axis, float32 [tiles, length]; each column sums to 1.

    Where two tiles overlap, one fades out as the other fades in, linearly. There the last `hidden` places of a tile, or
    a quarter of the overlap if that is less, count nothing.
    """
    weights = np.zeros((len(places), places[-1] + tile))
    for k, start in enumerate(places):
        weights[k, start : start + tile] = 1.0
    for k, (start, following) in enumerate(pairwise(places)):
        shared = start + tile - following
        margin = min(hidden, shared / 4)
        rising = np.clip((np.arange(tile) + 0.5 - margin) / (shared - 2 * margin), 0.0, 1.0)
        weights[k, start : start + tile] *= rising[::-1]
        weights[k + 1, following : following + tile] *= rising
    return (weights / weights.sum(axis=0)).astype(np.float32)


def blend(length: int, tile: int, reduction: int) -> tuple[list[int], np.ndarray]:
    """Return where the tiles along an axis start, and how much each counts at each pixel, as `ramps` does.

    `length`, `tile` and the starts are in latents, of `reduction` pixels each.
    """
    places = starts(length, tile)
    weights = ramps([reduction * place for place in places], reduction * min(length, tile), reduction * _HIDDEN)
    return places, weights


def _array(latents: np.ndarray | Tensor) -> np.ndarray:
    return np.asarray(latents.asnumpy() if isinstance(latents, Tensor) else latents, np.float32)


def _with_ones(latents: np.ndarray) -> np.ndarray:
    """Return `latents` [N, z, h, w] with one more channel, of ones."""
    return np.concatenate([latents, np.ones_like(latents[:, :1])], axis=1)


def _enlarged(values: np.ndarray, times: int) -> np.ndarray:
    return values.repeat(times, axis=1).repeat(times, axis=2)


def _shown(levels: np.ndarray) -> np.ndarray:
    """Return `levels` [..., 3, H, W] as images uint8 [..., H, W, 3]."""
    return np.ascontiguousarray(np.moveaxis(np.rint(np.clip(levels, 0.0, 255.0)).astype(np.uint8), -3, -1))


class _Decode(nn.Cell):
    """Scaled latents → levels [N, 3, H, W], where 0 is black and 255 white; the network may go beyond both."""

    def __init__(self, model: SDXL) -> None:
        super().__init__(auto_prefix=False)
        self.vae, self.scale = model.first_stage_model, model.config.vae.scale_factor

    def construct(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents / self.scale) * 127.5 + 127.5


class VAEDecoder:
    """A model's autoencoder, ready to show latents; keeps its graph, and what previews need, between calls.

    It holds on to the autoencoder: a model that has released it cannot be given.
    """

    def __init__(self, model: SDXL, backend: Backend) -> None:
        self.vae, self.config = model.first_stage_model, model.config.vae
        self.decode = compile_cell(_Decode(model), backend.graph, "the decoder")

    def images(self, latents: np.ndarray | Tensor, sampling: SamplingConfig) -> np.ndarray:
        """Return the images uint8 [N, H, W, 3] of scaled `latents` [N, z, h, w].

        With `vae_slicing` they are decoded one after the other, and with `vae_tiling` those larger than a tile in tiles
        of one shape; each pixel is then the weighted mean of the tiles that have it. UserError for a tile that does not
        fit.
        """
        values = _array(latents)
        tile = tile_side(sampling, self.config)
        if tile is not None and max(values.shape[2:]) > tile:
            return np.stack([_shown(self._tiled(each, tile)) for each in values])
        parts = np.split(values, len(values)) if sampling.vae_slicing else [values]
        return np.concatenate([_shown(self.decode(Tensor(part)).asnumpy()) for part in parts])

    def preview(self, latents: np.ndarray | Tensor) -> np.ndarray:
        """Return small images uint8 [N, h, w, 3] of scaled `latents` [N, z, h, w], a pixel each."""
        return _shown(np.einsum("nzhw,zc->nchw", _with_ones(_array(latents)), self.colours))

    @cached_property
    def colours(self) -> np.ndarray:
        """Levels of red, green and blue a unit of each channel of a scaled latent, then a constant: [z + 1, 3].

        The least-squares fit to `patches`, made when first asked for.
        """
        latents, levels = self.patches()
        given = _with_ones(latents[None])[0]
        fitted, *_ = np.linalg.lstsq(given.reshape(len(given), -1).T, levels.reshape(3, -1).T, rcond=None)
        return fitted.astype(np.float32)

    def patches(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the scaled latents [z, h, w] of an image of random colours, and its levels [3, h, w] there."""
        colours = rng.generator(0, "preview").uniform(0.0, 255.0, (3, _PATCHES, _PATCHES)).astype(np.float32)
        levels = _enlarged(colours, _PATCH)
        image = _enlarged(levels, self.config.reduction) / 127.5 - 1
        mean, _ = self.vae.encode(Tensor(image[None]))
        return mean.asnumpy()[0] * np.float32(self.config.scale_factor), levels

    def _tiled(self, latents: np.ndarray, tile: int) -> np.ndarray:
        """Return the levels [3, H, W] of `latents` [z, h, w], decoded in tiles."""
        scale, (height, width) = self.config.reduction, (min(side, tile) for side in latents.shape[1:])
        (tops, rows), (lefts, columns) = (blend(side, tile, scale) for side in latents.shape[1:])
        levels = np.zeros((3, rows.shape[1], columns.shape[1]), np.float32)
        for (i, top), (j, left) in product(enumerate(tops), enumerate(lefts)):
            part = np.ascontiguousarray(latents[None, :, top : top + height, left : left + width])
            y, x = slice(scale * top, scale * (top + height)), slice(scale * left, scale * (left + width))
            levels[:, y, x] += rows[i, y, None] * columns[j, x] * self.decode(Tensor(part)).asnumpy()[0]
        return levels
