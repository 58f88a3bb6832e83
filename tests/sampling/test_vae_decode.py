"""VAE decoding: whole, in slices, in tiles; previews."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from PIL import Image

from gm.config import SamplingConfig
from gm.config.networks import VAEConfig
from gm.data import image_folder, latent_cache
from gm.errors import UserError
from gm.models.stable_diffusion import StableDiffusion
from gm.runtime.backend import Backend
from gm.sampling import vae_decode
from gm.sampling.vae_decode import VAEDecoder
from tests.project import Workshop
from tests.reference.case import Case
from tests.reference.inputs import normal, relative_error
from tests.sampling.generation import PYNATIVE

PLAIN = SamplingConfig()


@pytest.fixture(scope="module")
def decoder(workshop: Workshop) -> VAEDecoder:
    return VAEDecoder(workshop.model, PYNATIVE)


def record_shapes(decoder: VAEDecoder, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Return a list that takes the shape of everything that `decoder` decodes from now on."""
    shapes: list[tuple[int, ...]] = []
    decode_levels = decoder.decode_levels

    def recorded(z: Tensor) -> Tensor:
        shapes.append(z.shape)
        return decode_levels(z)

    monkeypatch.setattr(decoder, "decode_levels", recorded)
    return shapes


def max_difference(a: np.ndarray, b: np.ndarray) -> int:
    """Return the largest difference in levels."""
    return int(np.abs(a.astype(int) - b.astype(int)).max())


@pytest.mark.reference
@pytest.mark.usefixtures("no_grad")
def test_images_are_those_of_pytorch(smallest: Case) -> None:
    z = normal(0, 2, smallest.config.vae.latent_channels, 6, 4)
    images = VAEDecoder(smallest.model, PYNATIVE).decode(z, PLAIN)
    expected = smallest.reference.decode_latents(z / np.float32(smallest.config.vae.scale_factor)).numpy()
    levels = np.clip(expected.transpose(0, 2, 3, 1) * 127.5 + 127.5, 0, 255)
    assert images.dtype == np.uint8
    assert images.shape == levels.shape
    assert np.abs(images - levels).max() < 0.51
    assert images.std() > 20


def test_tensors_and_arrays_decode_the_same(decoder: VAEDecoder) -> None:
    z = normal(1, 1, 4, 6, 8)
    assert np.array_equal(decoder.decode(Tensor(z), PLAIN), decoder.decode(z, PLAIN))
    assert np.array_equal(decoder.preview(Tensor(z)), decoder.preview(z))


def test_slicing_decodes_the_same(decoder: VAEDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    z = normal(2, 3, 4, 6, 8)
    shapes = record_shapes(decoder, monkeypatch)
    together, sliced = (decoder.decode(z, SamplingConfig(vae_slicing=on)) for on in (False, True))
    assert shapes == [(3, 4, 6, 8)] + 3 * [(1, 4, 6, 8)]
    assert max_difference(together, sliced) <= 1  # where a level is right between two
    whole = decoder.decode_levels(Tensor(z)).asnumpy()
    alone = np.concatenate([decoder.decode_levels(Tensor(one[None])).asnumpy() for one in z])
    assert relative_error(alone, whole) < 1e-6


@pytest.mark.parametrize("tile", [16, 24, 64])
def test_a_tile_as_large_as_the_image_decodes_the_whole(decoder: VAEDecoder, tile: int) -> None:
    z = normal(3, 2, 4, 6, 8)  # 12 × 16 pixels
    whole = decoder.decode(z, PLAIN)
    assert np.array_equal(decoder.decode(z, SamplingConfig(vae_tiling=True, vae_tile_size=tile)), whole)
    # A smaller one is not, so that the lines above say something.
    assert max_difference(decoder.decode(z, SamplingConfig(vae_tiling=True, vae_tile_size=8)), whole) > 1


def test_tiles_have_one_shape_and_do_not_depend_on_the_batch(
    decoder: VAEDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    z, tiled = normal(4, 2, 4, 11, 6), SamplingConfig(vae_tiling=True, vae_tile_size=16)
    shapes = record_shapes(decoder, monkeypatch)
    both = decoder.decode(z, tiled)
    assert both.shape == (2, 22, 12, 3)
    assert shapes == 4 * [(1, 4, 8, 6)]  # two an image, above each other
    assert np.array_equal(both[1], decoder.decode(z[1:], tiled)[0])


@pytest.mark.graph
def test_graph_mode_decodes_the_same(workshop: Workshop, decoder: VAEDecoder) -> None:
    compiled = VAEDecoder(workshop.model, Backend("CPU", graph=True, dtype=ms.float32))
    z = normal(5, 1, 4, 12, 8)
    for options in ({}, {"vae_tiling": True, "vae_tile_size": 16}):
        sampling = SamplingConfig(**options)
        assert max_difference(compiled.decode(z, sampling), decoder.decode(z, sampling)) <= 1
    # Previews are fitted outside the graph, and are the same.
    assert np.array_equal(compiled.preview(z), decoder.preview(z))


def sides(count: int) -> list[tuple[int, int, int]]:
    """Return random (length, tile, hidden)."""
    random = np.random.default_rng(6)
    lengths, tiles = random.integers(2, 300, count), random.integers(8, 130, count)
    return [(int(n), int(t), int(h)) for n, t, h in zip(lengths, tiles, random.integers(0, 20, count), strict=True)]


def test_blend_weights_sum_to_one_and_tiles_overlap_enough() -> None:
    for length, tile, hidden in sides(300):
        tile = min(length, tile)
        places, shared = vae_decode.tile_starts(length, tile), max(-(-tile // 4), min(8, tile // 2))
        assert places[0] == 0
        assert places[-1] + tile == length
        weights = vae_decode.blend_weights(places, tile, hidden)
        assert weights.shape == (len(places), length)
        np.testing.assert_allclose(weights.sum(axis=0), 1.0, atol=1e-6)
        for k, start in enumerate(places):
            assert (weights[k, :start] == 0).all()
            assert (weights[k, start + tile :] == 0).all()
            assert (weights[k] >= 0).all()
            assert k == 0 or places[k - 1] + tile - start >= shared
        assert len(places) == 1 or tile + (len(places) - 2) * (tile - shared) < length  # one less are too few


def test_two_tiles_are_blended_linearly() -> None:
    weights = vae_decode.blend_weights([0, 12], 20, 1)  # 8 places are shared, of which one at either end is hidden
    expected = np.concatenate([np.ones(12), [1.0], 1 - (np.arange(6) + 0.5) / 6, [0.0], np.zeros(12)])
    np.testing.assert_allclose(weights, [expected, 1 - expected], atol=1e-6)
    weights = vae_decode.blend_weights([0, 12], 20, 50)  # a quarter of what is shared is hidden at most
    np.testing.assert_allclose(weights[1, 12:20], [0, 0, 0.125, 0.375, 0.625, 0.875, 1, 1], atol=1e-6)


def test_every_tile_is_at_its_place(decoder: VAEDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder without context leaves no trace of the tiles."""

    def pixel_by_pixel(z: Tensor) -> Tensor:
        return Tensor(z.asnumpy()[:, :3].repeat(2, axis=2).repeat(2, axis=3))

    monkeypatch.setattr(decoder, "decode_levels", pixel_by_pixel)
    random = np.random.default_rng(7)
    for _ in range(20):
        z = random.uniform(0, 255, (1, 4, *random.integers(1, 60, 2))).astype(np.float32)
        tiled = decoder.decode(z, SamplingConfig(vae_tiling=True, vae_tile_size=2 * int(random.integers(4, 40))))
        assert max_difference(tiled, np.rint(z[:, :3]).repeat(2, axis=2).repeat(2, axis=3).transpose(0, 2, 3, 1)) <= 1


def test_a_tile_size_that_is_not_a_multiple_of_the_reduction_is_refused() -> None:
    message = "--vae_tile_size is 72; it must be a multiple of 16, the VAE's reduction"
    deep = VAEConfig(channel_mult=(1, 2, 4, 4, 4))
    with pytest.raises(UserError, match=message):
        vae_decode.latent_tile_size(SamplingConfig(vae_tiling=True, vae_tile_size=72), deep)
    without_tiling = SamplingConfig(vae_tile_size=72)
    assert vae_decode.latent_tile_size(without_tiling, deep) is None
    assert vae_decode.latent_tile_size(SamplingConfig(vae_tiling=True), VAEConfig()) == 128


@pytest.fixture(scope="module")
def shipped(tiny: StableDiffusion) -> tuple[VAEDecoder, Callable[..., np.ndarray]]:
    """Return the shipped model's decoder, and a function from pixels a side to the scaled latents of its images."""

    def encoded(side: int) -> np.ndarray:
        images = image_folder.load_images("datasets/humbug", side)
        encoded = latent_cache.encode_images(tiny.first_stage_model, images, False, tiny.config.vae.scale_factor)
        return np.concatenate(encoded.mean) * np.float32(encoded.scale_factor)

    return VAEDecoder(tiny, PYNATIVE), encoded


def r_squared(values: np.ndarray, expected: np.ndarray) -> float:
    """Return R² over the last axis, of colors."""
    values, expected = (each.reshape(-1, 3).astype(np.float64) for each in (values, expected))
    return 1.0 - float(((values - expected) ** 2).sum() / ((expected - expected.mean(axis=0)) ** 2).sum())


def test_tiles_of_the_shipped_model_are_close_to_the_whole(shipped: Any) -> None:
    decoder, encoded = shipped
    z = encoded(128)[:2]
    whole = decoder.decode(z, PLAIN).astype(np.float64)
    tiled = decoder.decode(z, SamplingConfig(vae_tiling=True, vae_tile_size=64)).astype(np.float64)
    assert 0 < np.abs(tiled - whole).mean() < 4, np.abs(tiled - whole).mean()
    assert r_squared(tiled, whole) > 0.99, r_squared(tiled, whole)


def test_previews_are_close_to_the_downscaled_image(shipped: Any) -> None:
    decoder, encoded = shipped
    z = encoded(64)
    preview = decoder.preview(z)
    assert preview.dtype == np.uint8
    assert preview.shape == (5, 16, 16, 3)
    images = decoder.decode(z, PLAIN)
    small = np.stack([Image.fromarray(image).resize((16, 16), Image.Resampling.BOX) for image in images])
    assert r_squared(preview, small) > 0.87, r_squared(preview, small)
    for other in (z[:, [1, 2, 3, 0]], z[::-1].copy(), z[:, :, ::-1].copy()):
        assert r_squared(decoder.preview(other), small) < 0.5, r_squared(decoder.preview(other), small)


def test_the_preview_fit_explains_its_color_patches(shipped: Any) -> None:
    decoder, _ = shipped
    z, levels = decoder.color_patches()
    assert z.shape == (4, 24, 24)
    assert levels.shape == (3, 24, 24)
    assert decoder.latent_rgb_factors.shape == (5, 3)
    fitted = np.einsum("zhw,zc->hwc", z, decoder.latent_rgb_factors[:4]) + decoder.latent_rgb_factors[4]
    assert r_squared(fitted, levels.transpose(1, 2, 0)) > 0.86, r_squared(fitted, levels.transpose(1, 2, 0))
    # The best there is: what is left over has nothing to do with what was given.
    residual = levels.transpose(1, 2, 0) - fitted
    assert abs(residual.mean()) < 0.01
    assert np.abs(np.einsum("zhw,hwc->zc", z, residual) / residual[..., 0].size).max() < 0.01
