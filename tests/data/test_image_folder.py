"""Images loaded from a folder: order, size, crop, orientation and pixel values."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from PIL import Image

from gm.data import image_folder
from gm.data.image import flip_horizontal
from tests.data.images import noise, one, save


def quarters(size=16):
    """Four colors: red and green above blue and white."""
    array = np.zeros((2, 2, 3), np.uint8)
    array[0, 0, 0] = array[0, 1, 1] = array[1, 0, 2] = 255
    array[1, 1] = 255
    return array.repeat(size, 0).repeat(size, 1)


def corners(pixels):
    return pixels[:, [1, 1, -2, -2], [1, -2, 1, -2]].T.round(3)


def test_values_and_layout(tmp_path):
    save(tmp_path / "a.png", quarters())
    image = one(tmp_path, 32)
    assert image.name == "a.png"
    assert image.pixels.dtype == np.float32
    assert image.pixels.shape == (3, 32, 32)
    assert image.pixels.flags.c_contiguous
    expected = [[1, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, 1]]
    np.testing.assert_array_equal(corners(image.pixels), expected)


def test_an_image_of_the_right_size_is_unchanged(tmp_path):
    array = noise(24, 24)
    save(tmp_path / "a.png", array)
    restored = (one(tmp_path, 24).pixels.transpose(1, 2, 0) + 1) * 127.5
    np.testing.assert_allclose(restored, array, atol=1e-3)


def test_images_come_in_the_order_of_their_names(tmp_path):
    for name in ("b.png", "a.jpg", "10.png", "9.PNG"):
        save(tmp_path / name, noise(8, 8))
    assert [p.name for p in image_folder.load_images(str(tmp_path), 8)] == ["10.png", "9.PNG", "a.jpg", "b.png"]


@pytest.mark.parametrize(
    ("height", "width", "resolution", "crop"),
    [
        (64, 64, 32, (0, 0)),
        (64, 96, 32, (0, 8)),  # becomes 32 × 48
        (96, 64, 32, (8, 0)),
        (33, 50, 32, (0, 8)),  # 48.48 → 48
        (101, 67, 64, (16, 0)),  # 96.48 → 96
        (50, 77, 40, (0, 11)),  # 61.6 → 62: 11 on either side
        (40, 59, 40, (0, 9)),  # 59: 9 to the left, 10 to the right
        (59, 40, 40, (9, 0)),
        (20, 31, 40, (0, 11)),  # enlarged to 62
    ],
)
def test_crop_corner(tmp_path, height, width, resolution, crop):
    save(tmp_path / "a.png", noise(height, width))
    image = one(tmp_path, resolution)
    assert image.original_size == (height, width)
    assert image.crop_top_left == crop


@pytest.mark.parametrize(("height", "width"), [(61, 97), (97, 61), (300, 211), (20, 27)])
def test_crop_equals_resizing_the_whole_image_and_cropping(tmp_path, height, width):
    path = save(tmp_path / "a.png", noise(height, width))
    image = one(tmp_path, 32)
    top, left = image.crop_top_left
    scale = 32 / min(height, width)
    whole = Image.open(path).resize((round(width * scale), round(height * scale)), Image.Resampling.LANCZOS)
    cut = np.asarray(whole.crop((left, top, left + 32, top + 32)), np.float32).transpose(2, 0, 1)
    np.testing.assert_allclose((image.pixels + 1) * 127.5, cut, atol=1.01)


def test_a_very_long_image_needs_no_more_memory_than_its_crop(tmp_path):
    save(tmp_path / "a.png", np.full((2, 60_000, 3), 200))
    assert one(tmp_path, 64).crop_top_left == (0, (60_000 * 32 - 64) // 2)  # whole it would be 64 × 1,920,000


@pytest.mark.parametrize("factor", [0.4, 1, 3.7, 9])
def test_gradient_stays_a_gradient(tmp_path, factor):
    side = round(48 * factor)
    ramp = np.linspace(0, 255, side).round()
    save(tmp_path / "a.png", np.broadcast_to(ramp[None, :, None], (side, side, 3)))
    row = one(tmp_path, 48).pixels[0, 24]
    centres = ((np.arange(48) + 0.5) / 48 * side - 0.5) / (side - 1) * 2 - 1
    inner = slice(4, -4)  # the ends have no neighbours to blend with
    np.testing.assert_allclose(row[inner], centres[inner], atol=0.012)
    assert (np.diff(row[inner]) > 0).all()


def test_fine_stripes_are_downscaled_to_gray_without_moire(tmp_path):
    stripes = np.zeros((500, 500, 3))
    stripes[:, ::2] = 255
    save(tmp_path / "a.png", stripes)
    assert np.abs(one(tmp_path, 64).pixels[:, 4:-4, 4:-4]).max() < 0.06


def test_upscaling_warns_and_downscaling_does_not(tmp_path, caplog):
    save(tmp_path / "small.png", noise(20, 31))
    save(tmp_path / "large.png", noise(40, 40))
    with caplog.at_level(logging.INFO, logger="gm"):
        image_folder.load_images(tmp_path, 40)
    assert caplog.messages == ["upscaled to 40 pixels, larger originals would have more detail: small.png"]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "jpg", "tiff"])
def test_exif_orientation(tmp_path, orientation, ending):
    upright = np.concatenate([quarters(), quarters()[:, 16:]], axis=1)  # 32 high, 48 wide
    stored = {  # how a camera that notes the orientation stores what is upright
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation](upright)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": 0} if ending == "jpg" else {}
    save(tmp_path / f"a.{ending}", stored, exif=exif, **options)
    image = one(tmp_path, 32)
    assert image.original_size == (32, 48)
    assert image.crop_top_left == (0, 8)
    np.testing.assert_allclose(corners(image.pixels), [[1, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, 1]], atol=0.06)


@pytest.mark.parametrize(("height", "width"), [(40, 59), (50, 77), (59, 40), (40, 40), (33, 50)])
def test_flip_horizontal(tmp_path, height, width):
    array = noise(height, width)
    path = save(tmp_path / "a.png", array)
    image = one(tmp_path, 32)
    flipped = flip_horizontal(image)
    np.testing.assert_array_equal(flipped.pixels, image.pixels[:, :, ::-1])
    assert flipped.pixels.flags.c_contiguous
    assert (flipped.name, flipped.original_size) == ("a.png", (height, width))
    top, left = image.crop_top_left
    whole = round(width * 32 / min(height, width))
    assert flipped.crop_top_left == (top, whole - 32 - left)
    back = flip_horizontal(flipped)
    assert back.crop_top_left == image.crop_top_left
    save(path, array[:, ::-1])
    other = one(tmp_path, 32)
    if (whole - 32) % 2 == 0:  # else the middle lies one pixel off, on the other side
        np.testing.assert_allclose(flipped.pixels, other.pixels, atol=0.03)


def test_loading_twice_gives_the_same(tmp_path):
    save(tmp_path / "a.jpg", noise(50, 70))
    np.testing.assert_array_equal(one(tmp_path, 24).pixels, one(tmp_path, 24).pixels)


@pytest.mark.parametrize(("height", "width"), [(32, 64), (64, 32), (8, 20)])
def test_squashed_images_are_resized_whole(tmp_path, height, width):
    image = quarters(32)
    Image.fromarray(image).resize((width, height), Image.Resampling.NEAREST).save(tmp_path / "a.png")
    (squashed,) = image_folder.load_images(str(tmp_path), 16, center_crop=False)
    assert squashed.size == (16, 16)
    assert (squashed.original_size, squashed.crop_top_left) == ((height, width), (0, 0))
    np.testing.assert_array_equal(corners(squashed.pixels).round(), corners(one_quarters(16)))
    flipped = flip_horizontal(squashed)
    assert flipped.crop_top_left == (0, 0)
    np.testing.assert_array_equal(flipped.pixels, squashed.pixels[:, :, ::-1])


def one_quarters(side):
    return quarters(side // 2).transpose(2, 0, 1) / 127.5 - 1


def test_squashing_with_a_filter_is_that_of_pillow(tmp_path, caplog):
    array = noise(21, 33)
    save(tmp_path / "a.png", array)
    (image,) = image_folder.load_images(str(tmp_path), 16, center_crop=False, interpolation="bicubic")
    expected = np.asarray(Image.fromarray(array).resize((16, 16), Image.Resampling.BICUBIC), np.float32)
    np.testing.assert_allclose((image.pixels.transpose(1, 2, 0) + 1) * 127.5, expected, atol=1e-3)
    assert caplog.messages == []
    image_folder.load_images(str(tmp_path), 24, center_crop=False)  # higher, and narrower
    assert caplog.messages == ["upscaled to 24 pixels, larger originals would have more detail: a.png"]


def test_masks_are_squashed_with_their_images(tmp_path):
    array = np.zeros((16, 32, 4), np.uint8)
    array[:, 16:, 3] = 255
    save(tmp_path / "a.png", array)
    (image,) = image_folder.load_images(str(tmp_path), 16, center_crop=False)
    np.testing.assert_array_equal(image.mask, np.repeat([[0.0] * 8 + [1.0] * 8], 16, 0))
