"""Images loaded from a folder: every way to store a color gives the color that people see."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from tests.data.images import BLACK, WHITE, one, save


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_colors_are_converted_from_the_color_space_of_the_image(tmp_path, ending):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    # A space whose first number is the green light and whose second is the red.
    swapped = srgb.replace(b"rXYZ", b"----").replace(b"gXYZ", b"rXYZ").replace(b"----", b"gXYZ")
    red = np.full((16, 16, 3), (200, 30, 30), np.uint8)
    for profile, expected in (
        (None, (200, 30, 30)),
        (srgb, (200, 30, 30)),
        (swapped, (30, 200, 30)),
        (b"junk", (200, 30, 30)),
    ):
        Image.fromarray(red).save(tmp_path / f"a.{ending}", icc_profile=profile)
        found = (one(tmp_path, 16).pixels[:, 8, 8] + 1) * 127.5
        np.testing.assert_allclose(found, expected, atol=6)


def center_color(tmp_path, resolution=8):
    return one(tmp_path, resolution).pixels[:, 4, 4]


@pytest.mark.parametrize(("alpha", "expected"), [(0, [1, 1, 1]), (255, [1, -1, -1]), (128, [1, -0.004, -0.004])])
def test_transparency_lies_on_white(tmp_path, alpha, expected):
    image = np.full((8, 8, 4), [255, 0, 0, alpha])
    image[0, 0, 3] = 255  # an image that is transparent all over is refused
    save(tmp_path / "a.png", image)
    np.testing.assert_allclose(center_color(tmp_path), expected, atol=0.005)


def test_grey_with_alpha(tmp_path):
    save(tmp_path / "a.png", np.full((8, 8, 2), [0, 51]))
    np.testing.assert_allclose(center_color(tmp_path), 0.6, atol=0.005)


@pytest.mark.parametrize(("clear", "expected"), [(None, [1, -1, 1]), (3, [1, 1, 1]), (2, [1, -1, 1])])
def test_palette(tmp_path, clear, expected):
    image = Image.new("P", (8, 8), 3)
    image.putpixel((0, 0), 2)
    image.putpalette([0, 0, 0] * 3 + [255, 0, 255])
    image.save(tmp_path / "a.png", **({} if clear is None else {"transparency": clear}))
    np.testing.assert_allclose(center_color(tmp_path), expected)


@pytest.mark.parametrize("value", [0, 255, 300, 32768, 65535])
@pytest.mark.parametrize("ending", ["png", "tiff", "pgm"])
def test_sixteen_bit_grey(tmp_path, value, ending):
    values = np.full((8, 8), value, np.uint16)
    if ending == "pgm":  # which older Pillows read but do not write
        (tmp_path / "a.pgm").write_bytes(b"P5 8 8 65535\n" + values.astype(">u2").tobytes())
    else:
        Image.fromarray(values).save(tmp_path / f"a.{ending}")
    np.testing.assert_allclose(center_color(tmp_path), value / 65535 * 2 - 1, atol=1 / 255)


def test_sixteen_bit_grey_with_a_clear_value(tmp_path):
    values = np.full((8, 8), 1000, np.uint16)
    values[:, 4:] = 2000
    path = tmp_path / "a.png"
    Image.fromarray(values).save(path)
    content, chunk = path.read_bytes(), b"tRNS" + (2000).to_bytes(2, "big")  # by hand: older Pillows only read it
    chunk = (2).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    path.write_bytes(content[:33] + chunk + content[33:])  # behind the header
    pixels = one(tmp_path, 8).pixels
    assert pixels[0, 4, 7] == WHITE
    assert pixels[0, 4, 0] < -0.9


@pytest.mark.parametrize(("mode", "color", "expected"), [("L", 255, WHITE), ("1", 0, BLACK), ("1", 1, WHITE)])
def test_grey_and_two_tone(tmp_path, mode, color, expected):
    Image.new(mode, (8, 8), color).save(tmp_path / "a.png")
    np.testing.assert_allclose(center_color(tmp_path), expected)


@pytest.mark.parametrize("ending", ["jpg", "tiff"])
def test_cmyk(tmp_path, ending):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / f"a.{ending}")
    np.testing.assert_allclose(center_color(tmp_path), [1, -1, -1], atol=0.03)


def test_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (8, 8), c) for c in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    np.testing.assert_allclose(center_color(tmp_path), [1, -1, -1], atol=0.02)
