"""The reader of image files: colors of every kind, orientation, transparency, and what is said of unused parts."""

from __future__ import annotations

import logging
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gm.data.image_reader import read_image, read_mask
from gm.errors import UserError
from tests.data import color_profiles
from tests.data.images import noise, save


def color(path: Path) -> list[int]:
    """Return the color of an image in its middle."""
    rgb = read_image(path).rgb
    assert rgb.mode == "RGB"
    return list(rgb.getpixel((rgb.width // 2, rgb.height // 2)))  # type: ignore[arg-type]


def plain(mode: str, value: object, path: Path, **options: object) -> Path:
    Image.new(mode, (8, 8), value).save(path, **options)  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "bmp"])
@pytest.mark.parametrize("profile", [None, color_profiles.srgb()], ids=["without profile", "sRGB"])
def test_8_bit_rgb_is_unchanged(tmp_path: Path, caplog: pytest.LogCaptureFixture, ending: str, profile: bytes) -> None:
    every = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = save(tmp_path / f"a.{ending}", every, icc_profile=profile)
    with Image.open(path) as stored:
        assert np.array_equal(np.asarray(read_image(path).rgb), np.asarray(stored.convert("RGB")))
    assert read_image(path).alpha is None
    assert caplog.messages == []


def test_gray_is_converted_by_its_profile(tmp_path: Path) -> None:
    profile = color_profiles.linear_gray()
    for path in (
        plain("L", 55, tmp_path / "a.png", icc_profile=profile),
        plain("L", 55, tmp_path / "a.jpg", icc_profile=profile),
        plain("LA", (55, 255), tmp_path / "opaque.png", icc_profile=profile),
    ):
        np.testing.assert_allclose(color(path), 128, atol=1)
    Image.fromarray(np.full((8, 8), 55 * 257, np.uint16)).save(tmp_path / "deep.png", icc_profile=profile)
    np.testing.assert_allclose(color(tmp_path / "deep.png"), 128, atol=1)


def test_half_transparent_gray_is_converted_by_its_profile(tmp_path: Path) -> None:
    image = Image.new("LA", (8, 8), (55, 255))
    image.paste((55, 0), (0, 0, 4, 8))
    image.save(tmp_path / "a.png", icc_profile=color_profiles.linear_gray())
    np.testing.assert_allclose(color(tmp_path / "a.png"), 128, atol=1)
    assert read_image(tmp_path / "a.png").rgb.getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("transparency", [None, 0])
def test_a_palette_is_converted_by_its_profile(tmp_path: Path, transparency: int | None) -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpixel((0, 0), 0)
    image.putpalette([0, 0, 0, 200, 30, 30])
    options = {} if transparency is None else {"transparency": transparency}
    image.save(tmp_path / "a.png", icc_profile=color_profiles.swapped(), **options)
    np.testing.assert_allclose(color(tmp_path / "a.png"), (30, 200, 30), atol=6)


def test_rgb_with_alpha_is_converted_by_its_profile(tmp_path: Path) -> None:
    image = Image.new("RGBA", (8, 8), (200, 30, 30, 255))
    image.putpixel((0, 0), (200, 30, 30, 0))
    image.save(tmp_path / "a.png", icc_profile=color_profiles.swapped())
    np.testing.assert_allclose(color(tmp_path / "a.png"), (30, 200, 30), atol=6)
    assert read_image(tmp_path / "a.png").rgb.getpixel((0, 0)) == (255, 255, 255)


def test_gray_with_a_profile_of_rgb_keeps_that_curve(tmp_path: Path) -> None:
    assert color(plain("L", 77, tmp_path / "a.png", icc_profile=color_profiles.srgb())) == [77, 77, 77]


@pytest.mark.parametrize("ending", ["jpg", "tiff"])
def test_cmyk_is_converted_by_its_profile(tmp_path: Path, caplog: pytest.LogCaptureFixture, ending: str) -> None:
    path = plain("CMYK", (255, 0, 0, 0), tmp_path / f"a.{ending}", icc_profile=color_profiles.gray_cyan())
    np.testing.assert_allclose(color(path), 119, atol=3)
    assert caplog.messages == []


def test_cmyk_without_a_profile_is_approximate_and_says_so(tmp_path: Path) -> None:
    path = plain("CMYK", (255, 0, 0, 0), tmp_path / "a.tiff")
    assert color(path) == [0, 255, 255]
    (note,) = read_image(path).notes
    assert note.startswith("is CMYK without a color profile, so that its colors are approximate")


def test_lab_is_converted(tmp_path: Path) -> None:
    path = plain("LAB", (128, 128, 128), tmp_path / "a.tiff")  # L* = 50, without color
    np.testing.assert_allclose(color(path), 119, atol=2)


@pytest.mark.parametrize(
    ("mode", "profile", "message"),
    [
        ("RGB", b"junk", "has a damaged color profile, which is not used"),
        ("RGB", color_profiles.gray_cyan(), "has a color profile for CMYK, but its pixels are RGB; the profile is not"),
    ],
)
def test_a_profile_that_cannot_be_used_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: str, profile: bytes, message: str
) -> None:
    path = plain(mode, (200, 30, 30), tmp_path / "a.png", icc_profile=profile)
    with caplog.at_level(logging.WARNING, logger="gm"):
        assert color(path) == [200, 30, 30]
    (logged,) = caplog.messages
    assert logged.startswith(f"{path} {message}")


def chunk(name: bytes, content: bytes) -> bytes:
    """Return a chunk of a PNG."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def test_a_16_bit_color_of_a_png_is_transparent(tmp_path: Path) -> None:
    pixels = np.full((8, 8, 3), 0x1234, ">u2")
    pixels[:, 4:] = 0xABCD
    header = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in pixels))
    chunks = ((b"IHDR", header), (b"tRNS", b"\x12\x34" * 3), (b"IDAT", rows), (b"IEND", b""))
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks))
    image = read_image(tmp_path / "a.png")
    assert image.rgb.getpixel((0, 0)) == (255, 255, 255)
    assert image.rgb.getpixel((7, 0)) == (171, 171, 171)


def test_color_spaces_that_are_stated_without_a_profile_are_named(tmp_path: Path) -> None:
    path = plain("RGB", (200, 30, 30), tmp_path / "linear.png")
    content = path.read_bytes()
    path.write_bytes(content[:33] + chunk(b"gAMA", struct.pack(">I", 100_000)) + content[33:])  # behind the header
    assert read_image(path).notes == ("has a gamma of 1, which is not used; its colors are read as sRGB",)
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA005] = {1: "R03"}
    camera = plain("RGB", (200, 30, 30), tmp_path / "camera.jpg", exif=exif)
    (note,) = read_image(camera).notes
    assert note.startswith("is Adobe RGB by its EXIF data, but without a color profile")


@pytest.mark.parametrize("ending", ["png", "tiff"])
@pytest.mark.parametrize("bits", [8, 16])
def test_gray_images_are_turned_upright(tmp_path: Path, ending: str, bits: int) -> None:
    values = np.arange(8 * 4, dtype=np.uint16).reshape(4, 8) * 8
    stored = values.astype(np.uint8) if bits == 8 else values * 257
    for orientation, upright in ((1, values), (3, np.rot90(values, 2)), (6, np.rot90(values, -1)), (5, values.T)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(stored).save(tmp_path / f"a.{ending}", exif=exif)
        assert np.array_equal(np.asarray(read_image(tmp_path / f"a.{ending}").rgb)[..., 0], upright), orientation


def tiff(path: Path, values: bytes, bits: int, photometric: int) -> Path:
    """Write gray `values` of 4 × 4 pixels; Pillow itself writes neither 12 bits nor 16 bits whose white is 0."""
    entries = {256: 4, 257: 4, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: 4, 279: len(values)}
    directory = struct.pack("<H", len(entries))
    for tag, value in entries.items():
        directory += struct.pack("<HHIHH", tag, 3, 1, value, 0)
    path.write_bytes(struct.pack("<2sHI", b"II", 42, 8 + len(values)) + values + directory + bytes(4))
    return path


def test_16_bit_tiff_whose_white_is_0_is_not_inverted(tmp_path: Path) -> None:
    values = struct.pack("<16H", *[65535 - 100 * 257] * 16)
    assert color(tiff(tmp_path / "a.tiff", values, bits=16, photometric=0)) == [100, 100, 100]


def test_12_bit_tiff_is_not_dark(tmp_path: Path) -> None:
    assert color(tiff(tmp_path / "a.tiff", b"\xff" * 24, bits=12, photometric=1)) == [255, 255, 255]


def test_32_bit_integers_have_no_certain_white(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 255, np.int32)).save(tmp_path / "labels.tiff")
    with pytest.raises(UserError, match=r"\(its pixels have more than 16 bits\)"):
        read_image(tmp_path / "labels.tiff")


def test_floats_are_black_at_0_and_white_at_1(tmp_path: Path) -> None:
    for value, expected in ((0.0, 0), (0.2, 51), (1.0, 255)):
        assert color(plain("F", value, tmp_path / "a.tiff")) == [expected] * 3


@pytest.mark.parametrize(
    ("frames", "unit"), [("gif", "frames"), ("png", "frames"), ("webp", "frames"), ("tiff", "pages")]
)
def test_the_first_frame_is_used_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, frames: str, unit: str
) -> None:
    path = tmp_path / f"a.{frames}"
    colors = [Image.new("RGB", (8, 8), name) for name in ("red", "blue", "lime")]
    colors[0].save(path, save_all=True, append_images=colors[1:])
    with caplog.at_level(logging.WARNING, logger="gm"):
        np.testing.assert_allclose(color(path), (255, 0, 0), atol=3)
    assert caplog.messages == [f"{path} has 3 {unit}; only the first is used"]


def test_the_further_images_of_a_photo_are_no_frames(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    photo = Image.new("RGB", (8, 8), "red")
    photo.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[Image.new("RGB", (4, 4), "blue")])
    np.testing.assert_allclose(color(tmp_path / "a.jpg"), (255, 0, 0), atol=3)
    assert caplog.messages == []


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "I;16"])
def test_a_fully_transparent_image_is_refused(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "a.png"
    if mode == "P":
        palette = Image.new("P", (8, 8), 1)
        palette.putpalette([0, 0, 0, 255, 0, 255])
        palette.save(path, transparency=1)
    elif mode == "I;16":
        plain("I;16", 3, path, transparency=3)
    else:
        plain(mode, (90,) * (len(mode) - 1) + (0,), path)
    with pytest.raises(UserError) as caught:
        read_image(path)
    assert str(caught.value) == (
        f"{path} is fully transparent, so that nothing of it is seen; save it again opaque, or remove it"
    )


def test_damaged_exif_data_do_not_hide_the_image(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", noise(8, 8), exif=b"Exif\0\0junk junk junk")
    assert np.array_equal(np.asarray(read_image(path).rgb), noise(8, 8))


def test_a_mask_is_read_as_it_looks_on_black(tmp_path: Path) -> None:
    shape = np.zeros((8, 8), np.uint8)
    shape[:, :4] = 255
    soft = np.where(shape, 255, 26).astype(np.uint8)
    Image.fromarray(soft).save(tmp_path / "plain.png")
    Image.fromarray(soft.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    Image.fromarray(soft / np.float32(255)).save(tmp_path / "float.tiff")
    Image.fromarray(soft).convert("P").save(tmp_path / "palette.png")
    for name in ("plain.png", "deep.png", "float.tiff", "palette.png"):
        mask, alpha = read_mask(tmp_path / name)
        assert np.array_equal(np.asarray(mask), soft), name
        assert alpha is None
    save(tmp_path / "alpha.png", np.dstack([np.full((8, 8, 3), 255), shape]))
    mask, alpha = read_mask(tmp_path / "alpha.png")
    assert np.array_equal(np.asarray(mask), shape)
    assert np.array_equal(np.asarray(alpha), shape)


def test_a_mask_of_labels_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = save(tmp_path / "labels.png", np.eye(8))
    with caplog.at_level(logging.WARNING, logger="gm"):
        read_mask(path)
    assert caplog.messages == [f"the lightest pixel of the mask {path} is 1 of 255; white, 255, counts in full"]
