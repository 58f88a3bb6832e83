"""gm/sampling/vae_decode.py: whole, in slices, in tiles; previews."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from PIL import Image

from gm.config import SamplingConfig
from gm.config.model import VAEConfig
from gm.data import image_folder, latent_cache
from gm.errors import UserError
from gm.models.sdxl import SDXL
from gm.runtime.backend import Backend
from gm.sampling import vae_decode
from gm.sampling.vae_decode import VAEDecoder
from tests.project import Workshop
from tests.reference.case import Case
from tests.reference.inputs import normal, relative_error

PYNATIVE = Backend("CPU", graph=False, dtype=ms.float32)
PLAIN = SamplingConfig()


@pytest.fixture(scope="module")
def decoder(workshop: Workshop) -> VAEDecoder:
    return VAEDecoder(workshop.model, PYNATIVE)


def seen(decoder: VAEDecoder, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Return a list that takes the shape of everything that `decoder` decodes from now on."""
    shapes: list[tuple[int, ...]] = []
    decode = decoder.decode

    def noted(z: Tensor) -> Tensor:
        shapes.append(z.shape)
        return decode(z)

    monkeypatch.setattr(decoder, "decode", noted)
    return shapes


def far(a: np.ndarray, b: np.ndarray) -> int:
    """Return the largest difference in levels."""
    return int(np.abs(a.astype(int) - b.astype(int)).max())


@pytest.mark.usefixtures("no_grad")
def test_images_are_the_references(smallest: Case) -> None:
    z = normal(0, 2, smallest.config.vae.latent_channels, 6, 4)
    found = VAEDecoder(smallest.model, PYNATIVE).images(z, PLAIN)
    expected = smallest.reference.decode_latents(z / np.float32(smallest.config.vae.scale_factor)).numpy()
    shown = np.clip(expected.transpose(0, 2, 3, 1) * 127.5 + 127.5, 0, 255)
    assert found.dtype == np.uint8
    assert found.shape == shown.shape
    assert np.abs(found - shown).max() < 0.51
    assert found.std() > 20


def test_tensors_and_arrays_are_the_same(decoder: VAEDecoder) -> None:
    z = normal(1, 1, 4, 6, 8)
    assert np.array_equal(decoder.images(Tensor(z), PLAIN), decoder.images(z, PLAIN))
    assert np.array_equal(decoder.preview(Tensor(z)), decoder.preview(z))


def test_slices_are_the_same(decoder: VAEDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    z = normal(2, 3, 4, 6, 8)
    shapes = seen(decoder, monkeypatch)
    together, sliced = (decoder.images(z, SamplingConfig(vae_slicing=on)) for on in (False, True))
    assert shapes == [(3, 4, 6, 8)] + 3 * [(1, 4, 6, 8)]
    assert far(together, sliced) <= 1  # where a level is right between two
    whole = decoder.decode(Tensor(z)).asnumpy()
    alone = np.concatenate([decoder.decode(Tensor(one[None])).asnumpy() for one in z])
    assert relative_error(alone, whole) < 1e-6


@pytest.mark.parametrize("tile", [16, 24, 64])
def test_a_tile_as_large_as_the_image_is_the_image(decoder: VAEDecoder, tile: int) -> None:
    z = normal(3, 2, 4, 6, 8)  # 12 × 16 pixels
    whole = decoder.images(z, PLAIN)
    assert np.array_equal(decoder.images(z, SamplingConfig(vae_tiling=True, vae_tile_size=tile)), whole)
    # A smaller one is not, so that the lines above say something.
    assert far(decoder.images(z, SamplingConfig(vae_tiling=True, vae_tile_size=8)), whole) > 1


def test_tiles_are_of_one_shape_and_do_not_depend_on_the_batch(
    decoder: VAEDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    z, tiled = normal(4, 2, 4, 11, 6), SamplingConfig(vae_tiling=True, vae_tile_size=16)
    shapes = seen(decoder, monkeypatch)
    both = decoder.images(z, tiled)
    assert both.shape == (2, 22, 12, 3)
    assert shapes == 4 * [(1, 4, 8, 6)]  # two an image, above each other
    assert np.array_equal(both[1], decoder.images(z[1:], tiled)[0])


def test_graph_mode_decodes_the_same(workshop: Workshop, decoder: VAEDecoder) -> None:
    compiled = VAEDecoder(workshop.model, Backend("CPU", graph=True, dtype=ms.float32))
    z = normal(5, 1, 4, 12, 8)
    for options in ({}, {"vae_tiling": True, "vae_tile_size": 16}):
        sampling = SamplingConfig(**options)
        assert far(compiled.images(z, sampling), decoder.images(z, sampling)) <= 1
    # Previews are fitted outside the graph, and are the same.
    assert np.array_equal(compiled.preview(z), decoder.preview(z))


def sides(count: int) -> list[tuple[int, int, int]]:
    """Return random (length, tile, hidden)."""
    random = np.random.default_rng(6)
    lengths, tiles = random.integers(2, 300, count), random.integers(8, 130, count)
    return [(int(n), int(t), int(h)) for n, t, h in zip(lengths, tiles, random.integers(0, 20, count), strict=True)]


def test_weights_sum_to_one_wherever_a_tile_is() -> None:
    for length, tile, hidden in sides(300):
        tile = min(length, tile)
        places, shared = vae_decode.starts(length, tile), max(-(-tile // 4), min(8, tile // 2))
        assert places[0] == 0
        assert places[-1] + tile == length
        weights = vae_decode.ramps(places, tile, hidden)
        assert weights.shape == (len(places), length)
        np.testing.assert_allclose(weights.sum(axis=0), 1.0, atol=1e-6)
        for k, start in enumerate(places):
            assert (weights[k, :start] == 0).all()
            assert (weights[k, start + tile :] == 0).all()
            assert (weights[k] >= 0).all()
            assert k == 0 or places[k - 1] + tile - start >= shared
        assert len(places) == 1 or tile + (len(places) - 2) * (tile - shared) < length  # one less are too few


def test_two_tiles_fade_into_one_another_in_a_line() -> None:
    weights = vae_decode.ramps([0, 12], 20, 1)  # 8 places are shared, of which one at either end is hidden
    expected = np.concatenate([np.ones(12), [1.0], 1 - (np.arange(6) + 0.5) / 6, [0.0], np.zeros(12)])
    np.testing.assert_allclose(weights, [expected, 1 - expected], atol=1e-6)
    weights = vae_decode.ramps([0, 12], 20, 50)  # a quarter of what is shared is hidden at most
    np.testing.assert_allclose(weights[1, 12:20], [0, 0, 0.125, 0.375, 0.625, 0.875, 1, 1], atol=1e-6)


def test_every_tile_stands_in_its_place(decoder: VAEDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is decoded pixel by pixel does not show where the tiles were."""

    def pixel_by_pixel(z: Tensor) -> Tensor:
        return Tensor(z.asnumpy()[:, :3].repeat(2, axis=2).repeat(2, axis=3))

    monkeypatch.setattr(decoder, "decode", pixel_by_pixel)
    random = np.random.default_rng(7)
    for _ in range(20):
        z = random.uniform(0, 255, (1, 4, *random.integers(1, 60, 2))).astype(np.float32)
        tiled = decoder.images(z, SamplingConfig(vae_tiling=True, vae_tile_size=2 * int(random.integers(4, 40))))
        assert far(tiled, np.rint(z[:, :3]).repeat(2, axis=2).repeat(2, axis=3).transpose(0, 2, 3, 1)) <= 1


def test_a_tile_that_is_no_whole_number_of_latents() -> None:
    message = "--vae_tile_size is 72; it must be a multiple of 16, the autoencoder's reduction"
    deep = VAEConfig(channel_mult=(1, 2, 4, 4, 4))
    with pytest.raises(UserError, match=message):
        vae_decode.tile_side(SamplingConfig(vae_tiling=True, vae_tile_size=72), deep)
    assert vae_decode.tile_side(SamplingConfig(vae_tile_size=72), deep) is None  # nobody asked for tiles
    assert vae_decode.tile_side(SamplingConfig(vae_tiling=True), VAEConfig()) == 128


@pytest.fixture(scope="module")
def shown(tiny: SDXL) -> tuple[VAEDecoder, Callable[..., np.ndarray]]:
    """Return the shipped model's decoder, and a function from pixels a side to the scaled latents of drawn things."""

    def encoded(side: int) -> np.ndarray:
        images = image_folder.load_images("datasets/humbug", side)
        made = latent_cache.encode_images(tiny.first_stage_model, images, False, tiny.config.vae.scale_factor)
        return np.concatenate(made.mean) * np.float32(made.scale_factor)

    return VAEDecoder(tiny, PYNATIVE), encoded


def explained(found: np.ndarray, wanted: np.ndarray) -> float:
    """Return R², over the last axis of colours."""
    found, wanted = (values.reshape(-1, 3).astype(np.float64) for values in (found, wanted))
    return 1.0 - float(((found - wanted) ** 2).sum() / ((wanted - wanted.mean(axis=0)) ** 2).sum())


def test_the_shipped_models_tiles_show_what_the_whole_shows(shown: Any) -> None:
    decoder, encoded = shown
    z = encoded(128)[:2]
    whole = decoder.images(z, PLAIN).astype(np.float64)
    tiled = decoder.images(z, SamplingConfig(vae_tiling=True, vae_tile_size=64)).astype(np.float64)
    assert 0 < np.abs(tiled - whole).mean() < 4, np.abs(tiled - whole).mean()
    assert explained(tiled, whole) > 0.99, explained(tiled, whole)


def test_previews_are_the_image_made_small(shown: Any) -> None:
    decoder, encoded = shown
    z = encoded(64)
    preview = decoder.preview(z)
    assert preview.dtype == np.uint8
    assert preview.shape == (5, 16, 16, 3)
    images = decoder.images(z, PLAIN)
    small = np.stack([Image.fromarray(image).resize((16, 16), Image.Resampling.BOX) for image in images])
    assert explained(preview, small) > 0.87, explained(preview, small)
    for other in (z[:, [1, 2, 3, 0]], z[::-1].copy(), z[:, :, ::-1].copy()):
        assert explained(decoder.preview(other), small) < 0.5, explained(decoder.preview(other), small)


def test_the_fit_explains_the_colours_that_it_was_made_of(shown: Any) -> None:
    decoder, _ = shown
    z, levels = decoder.patches()
    assert z.shape == (4, 24, 24)
    assert levels.shape == (3, 24, 24)
    assert decoder.colours.shape == (5, 3)
    found = np.einsum("zhw,zc->hwc", z, decoder.colours[:4]) + decoder.colours[4]
    assert explained(found, levels.transpose(1, 2, 0)) > 0.86, explained(found, levels.transpose(1, 2, 0))
    # The best there is: what is left over has nothing to do with what was given.
    left = levels.transpose(1, 2, 0) - found
    assert abs(left.mean()) < 0.01
    assert np.abs(np.einsum("zhw,hwc->zc", z, left) / left[..., 0].size).max() < 0.01
