"""Initial images and masks: their files, sizes and latents, and pasting what the mask protects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gm.config import SamplingConfig
from gm.config.model import ModelConfig
from gm.config.networks import VAEConfig
from gm.errors import UserError
from gm.sampling import init_image
from tests.data.images import noise, save
from tests.reference.case import Case
from tests.reference.inputs import relative_error

PLAIN = SamplingConfig()


def small(resolution: int = 16) -> ModelConfig:
    return ModelConfig(resolution=resolution, vae=VAEConfig(channel_mult=(1, 2)))


def levels(pixels: np.ndarray) -> np.ndarray:
    return np.rint(pixels.transpose(1, 2, 0) * 127.5 + 127.5).astype(np.uint8)


def test_files_and_folders_in_the_order_they_are_given(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for name in ("b.png", "folder/d.jpg", "folder/c.PNG", "folder/.hidden.png", "folder/c.mask.png"):
        save(tmp_path / name, noise(8, 8))
    (tmp_path / "folder" / "notes.txt").write_text("no image")
    found = init_image.find_images([str(tmp_path / "b.png"), str(tmp_path / "folder"), str(tmp_path / "b.png")])
    assert [path.name for path in found] == ["b.png", "c.PNG", "d.jpg", "b.png"]


def test_paths_without_an_image_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for names, message in (
        ([], "--img is empty; img2img and inpaint start from images"),
        ([str(tmp_path / "nowhere.png")], "nowhere.png' does not exist; give images"),
        ([""], "--img '' does not exist; give images"),
        ([str(tmp_path / "empty")], "empty is a folder without images; put .jpg or .png files directly into it"),
    ):
        with pytest.raises(UserError, match=message):
            init_image.find_images(names)


@pytest.mark.parametrize(
    ("original", "options", "expected"),
    [
        ((3000, 4000), {}, (896, 1152)),  # among the sizes that SDXL was trained on
        ((300, 400), {}, (896, 1152)),
        ((500, 500), {}, (1024, 1024)),
        ((90, 10), {}, (2048, 512)),  # nothing is narrower
        ((3000, 4000), {"height": 512}, (512, 1024)),
        ((3000, 4000), {"width": 512, "height": 768}, (768, 512)),
        ((3000, 4000), {"sd_xl_base_ratios": "0.5"}, (1408, 704)),
    ],
)
def test_output_size_of_the_full_model(
    original: tuple[int, int], options: dict[str, Any], expected: tuple[int, int]
) -> None:
    assert init_image.output_size(original, SamplingConfig(**options), ModelConfig()) == expected


@pytest.mark.parametrize("resolution", [16, 64, 104, 512])
def test_output_sizes_of_smaller_models_fit_their_vae(resolution: int) -> None:
    model = small(resolution)
    for seed in range(20):
        original = tuple(int(side) for side in np.random.default_rng(seed).integers(1, 3000, 2))
        height, width = init_image.output_size(original, PLAIN, model)
        assert height % 2 == width % 2 == 0
        assert 0.7 < height * width / resolution**2 <= 1
        ratio = float(np.clip(original[1] / original[0], 0.25, 4.0))
        assert width / height == pytest.approx(ratio, rel=0.15)


def test_sides_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="--height is 1028; it must be a multiple of 8"):
        init_image.output_size((10, 10), SamplingConfig(height=1028), ModelConfig())


def test_an_image_of_the_output_size_is_unchanged(tmp_path: Path) -> None:
    shown = noise(24, 8)
    image = init_image.load(save(tmp_path / "a.png", shown), SamplingConfig(height=24, width=8), small())
    assert image.pixels.dtype == np.float32
    assert np.array_equal(levels(image.pixels), shown)
    assert image.mask is None


def test_an_image_is_scaled_and_cropped_in_its_middle(tmp_path: Path) -> None:
    shown = noise(40, 60)
    image = init_image.load(save(tmp_path / "a.png", shown), SamplingConfig(height=20, width=20), small())
    halved = Image.fromarray(shown).resize((30, 20), Image.Resampling.LANCZOS).crop((5, 0, 25, 20))
    np.testing.assert_allclose(levels(image.pixels).astype(int), np.asarray(halved).astype(int), atol=1)


def test_color_modes_and_orientation_are_applied(tmp_path: Path) -> None:
    """Each mode is tested by itself in tests/data; this tests that initial images are read the same way."""
    size = SamplingConfig(height=8, width=8)
    Image.fromarray(np.full((8, 8), 65535, np.uint16)).save(tmp_path / "deep.png")
    clear = np.full((8, 8, 4), [255, 0, 0, 0])
    clear[0, 0] = 255  # an image that is transparent all over is refused
    save(tmp_path / "clear.png", clear)
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 255, 255, 255])
    palette.save(tmp_path / "palette.png")
    Image.new("L", (8, 8), 255).save(tmp_path / "grey.png")
    for name in ("deep", "clear", "palette", "grey"):
        assert (init_image.load(tmp_path / f"{name}.png", size, small()).pixels == 1).all(), name
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    shown = noise(8, 16)
    save(tmp_path / "turned.png", shown, exif=exif)
    turned = init_image.load(tmp_path / "turned.png", SamplingConfig(height=16, width=8), small())
    assert np.array_equal(levels(turned.pixels), np.rot90(shown, -1))


def test_masks_in_a_folder_of_init_images_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.png", "a.mask.png", "a-masklabel.png"):
        save(tmp_path / name, noise(8, 8))
    assert init_image.find_images([str(tmp_path)]) == [tmp_path / "a.png"]
    assert caplog.messages == [
        f"--img {tmp_path}: not used as init images, but masks by their names or the like: a-masklabel.png, a.mask.png"
    ]


@pytest.mark.parametrize("ending", ["png", "jpg", "txt"])
def test_files_that_are_not_images_are_refused(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    path.write_text("<html>not found</html>")
    with pytest.raises(UserError, match=rf"cannot read the image {path} \(.*; save it again as JPEG or PNG"):
        init_image.load(path, PLAIN, small())
    with pytest.raises(UserError, match=rf"cannot read the mask {path} \(.*; save it again as PNG"):
        init_image.load_mask(str(path))


def test_truncated_and_huge_images_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.png", noise(40, 40))
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match="cannot read the image"):
        init_image.load(path, PLAIN, small())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UserError, match="has more than 0 million pixels; make a smaller copy"):
        init_image.load(save(tmp_path / "b.png", noise(40, 40)), PLAIN, small())


def half(height: int, width: int) -> np.ndarray:
    """Return a mask that is white in the right half."""
    shown = np.zeros((height, width), np.uint8)
    shown[:, width // 2 :] = 255
    return shown


@pytest.mark.parametrize(("height", "width"), [(40, 60), (20, 30), (80, 120)])
def test_a_mask_is_cropped_with_its_image(tmp_path: Path, height: int, width: int) -> None:
    mask = init_image.load_mask(str(save(tmp_path / "mask.png", half(height, width))))
    for number, shape in enumerate(((40, 60), (400, 600))):  # several images, one mask
        path = save(tmp_path / f"{number}.png", noise(*shape))
        image = init_image.load(path, SamplingConfig(height=20, width=20), small(), mask)
        assert image.mask is not None
        assert image.mask.dtype == np.float32
        assert np.array_equal(image.mask, half(20, 20) / 255)
        latent = init_image.latent_mask(image, 2)
        assert latent.dtype == np.float32
        assert np.array_equal(latent, half(10, 10) / 255)


def test_soft_mask_edges_stay_soft(tmp_path: Path) -> None:
    ramp = np.tile(np.linspace(0, 255, 16).round().astype(np.uint8), (16, 1))
    mask = init_image.load_mask(str(save(tmp_path / "mask.png", ramp)))
    path = save(tmp_path / "a.png", noise(16, 16))
    image = init_image.load(path, SamplingConfig(height=16, width=16), small(), mask)
    np.testing.assert_allclose(image.mask, ramp / 255, atol=1e-6)
    mean = ramp.reshape(8, 2, 8, 2).mean((1, 3)) / 255
    np.testing.assert_allclose(init_image.latent_mask(image, 2), mean, atol=1e-6)


def test_masks_of_any_color_mode(tmp_path: Path) -> None:
    Image.fromarray(half(8, 8).astype(np.uint16) * 257).save(tmp_path / "deep.png")
    Image.fromarray(half(8, 8)).convert("1").save(tmp_path / "bits.png")
    Image.fromarray(half(8, 8)).convert("RGBA").save(tmp_path / "opaque.png")
    for name in ("deep", "bits", "opaque"):
        assert np.array_equal(np.asarray(init_image.load_mask(str(tmp_path / f"{name}.png"))), half(8, 8)), name


def test_unusable_masks_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", noise(16, 64))
    black = save(tmp_path / "black.png", np.zeros((16, 64)))
    clear = save(tmp_path / "clear.png", np.full((16, 64, 4), [255, 255, 255, 0]))
    for name, message in (
        (str(tmp_path / "nowhere.png"), "nowhere.png' is not a file; give an image that is white where"),
        ("", "--mask '' is not a file"),
        (str(black), "black.png is black all over, which inpaints nothing"),
        (str(clear), "clear.png is partly transparent; save it without transparency, white where"),
    ):
        with pytest.raises(UserError, match=message):
            init_image.load_mask(name)
    square = init_image.load_mask(str(save(tmp_path / "square.png", half(16, 16))))
    with pytest.raises(UserError, match=rf"--mask is 16×16, but {path} is 64×16; give both one aspect ratio"):
        init_image.load(path, PLAIN, small(), square)
    rim = np.zeros((16, 64))
    rim[:, :4] = 255
    outside = init_image.load_mask(str(save(tmp_path / "rim.png", rim)))
    with pytest.raises(UserError, match=rf"--mask is black in the middle of {path}, which is all that is used"):
        init_image.load(path, SamplingConfig(height=16, width=16), small(), outside)


@pytest.mark.reference
@pytest.mark.usefixtures("no_grad")
def test_latents_are_those_of_pytorch(tmp_path: Path, smallest: Case) -> None:
    reduction = smallest.config.vae.downsample_factor
    size = SamplingConfig(height=12 * reduction, width=8 * reduction)
    shown = [save(tmp_path / f"{k}.png", np.random.default_rng(k).integers(0, 256, (90, 60, 3))) for k in range(2)]
    images = [init_image.load(path, size, smallest.config) for path in shown]
    found = init_image.encode(smallest.model, images)
    mean, _ = smallest.reference.encode_image(np.stack([image.pixels for image in images]))
    expected = mean.numpy() * smallest.config.vae.scale_factor
    assert found.dtype == np.float32
    assert found.shape == expected.shape == (2, smallest.config.vae.latent_channels, 12, 8)
    assert relative_error(found, expected) < 1e-4


def test_pasting_restores_protected_pixels_exactly(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    shown = random.integers(0, 256, (16, 16, 3), np.uint8)
    generated = random.integers(0, 256, (16, 16, 3), np.uint8)
    image = init_image.load(save(tmp_path / "a.png", shown), SamplingConfig(height=16, width=16), small())
    mask = random.choice(np.array([0.0, 0.25, 1.0], np.float32), (16, 16))
    pasted = init_image.paste(generated, image.pixels, mask)
    assert pasted.dtype == np.uint8
    assert np.array_equal(pasted[mask == 0], shown[mask == 0])
    assert np.array_equal(pasted[mask == 1], generated[mask == 1])
    mixed = 0.25 * generated[mask == 0.25] + 0.75 * shown[mask == 0.25]
    assert np.abs(pasted[mask == 0.25] - mixed).max() <= 0.501


def test_a_mask_of_another_shape_is_refused_before_the_image_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("1", (9000, 3000)).save(tmp_path / "large.png")
    monkeypatch.setattr(init_image, "read_image", lambda _: pytest.fail("the image was decoded"))
    with pytest.raises(UserError, match=r"--mask is 8×8, but .*large\.png is 9000×3000"):
        init_image.load(tmp_path / "large.png", PLAIN, small(), Image.new("L", (8, 8), 255))
