"""gm/data/folder.py: what comes out of a folder, number by number, and what is said about files that will not do."""

from __future__ import annotations

import logging
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from gm.data import folder
from gm.errors import UserError

WHITE, BLACK = 1.0, -1.0


def save(path, array, **options):
    Image.fromarray(np.asarray(array, np.uint8)).save(path, **options)
    return path


def one(tmp_path, resolution):
    (picture,) = folder.read(tmp_path, resolution)
    return picture


def noise(height, width):
    """Every pixel at random, but far from black and white, which a sharp filter would overshoot and clip."""
    return np.random.default_rng(0).integers(70, 186, (height, width, 3), np.uint8)


def quarters(size=16):
    """Four colours: red, green over blue, white."""
    array = np.zeros((2, 2, 3), np.uint8)
    array[0, 0, 0] = array[0, 1, 1] = array[1, 0, 2] = 255
    array[1, 1] = 255
    return array.repeat(size, 0).repeat(size, 1)


def corners(pixels):
    return pixels[:, [1, 1, -2, -2], [1, -2, 1, -2]].T.round(3)


def test_values_and_layout(tmp_path):
    save(tmp_path / "a.png", quarters())
    picture = one(tmp_path, 32)
    assert picture.name == "a.png"
    assert picture.pixels.dtype == np.float32
    assert picture.pixels.shape == (3, 32, 32)
    assert picture.pixels.flags.c_contiguous
    expected = [[1, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, 1]]
    np.testing.assert_array_equal(corners(picture.pixels), expected)


def test_same_size_is_untouched(tmp_path):
    array = noise(24, 24)
    save(tmp_path / "a.png", array)
    restored = (one(tmp_path, 24).pixels.transpose(1, 2, 0) + 1) * 127.5
    np.testing.assert_allclose(restored, array, atol=1e-3)


def test_pictures_come_in_the_order_of_their_names(tmp_path):
    for name in ("b.png", "a.jpg", "10.png", "9.PNG"):
        save(tmp_path / name, noise(8, 8))
    assert [p.name for p in folder.read(str(tmp_path), 8)] == ["10.png", "9.PNG", "a.jpg", "b.png"]


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
    picture = one(tmp_path, resolution)
    assert picture.original == (height, width)
    assert picture.crop == crop


@pytest.mark.parametrize(("height", "width"), [(61, 97), (97, 61), (300, 211), (20, 27)])
def test_cut_equals_resizing_the_whole_and_cropping(tmp_path, height, width):
    path = save(tmp_path / "a.png", noise(height, width))
    picture = one(tmp_path, 32)
    top, left = picture.crop
    scale = 32 / min(height, width)
    whole = Image.open(path).resize((round(width * scale), round(height * scale)), Image.Resampling.LANCZOS)
    cut = np.asarray(whole.crop((left, top, left + 32, top + 32)), np.float32).transpose(2, 0, 1)
    np.testing.assert_allclose((picture.pixels + 1) * 127.5, cut, atol=1.01)


def test_very_long_picture_costs_no_more_than_its_cut(tmp_path):
    save(tmp_path / "a.png", np.full((2, 60_000, 3), 200))
    assert one(tmp_path, 64).crop == (0, (60_000 * 32 - 64) // 2)  # whole it would be 64 × 1,920,000


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


def test_fine_stripes_shrink_to_grey_not_to_moire(tmp_path):
    stripes = np.zeros((500, 500, 3))
    stripes[:, ::2] = 255
    save(tmp_path / "a.png", stripes)
    assert np.abs(one(tmp_path, 64).pixels[:, 4:-4, 4:-4]).max() < 0.06


def test_enlarging_warns_and_shrinking_does_not(tmp_path, caplog):
    save(tmp_path / "small.png", noise(20, 31))
    save(tmp_path / "large.png", noise(40, 40))
    with caplog.at_level(logging.INFO, logger="gm"):
        folder.read(tmp_path, 40)
    assert caplog.messages == ["enlarged to 40 pixels, larger originals would show more: small.png"]


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_colours_are_those_of_the_pictures_own_colour_space(tmp_path, ending):
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
    picture = one(tmp_path, 32)
    assert picture.original == (32, 48)
    assert picture.crop == (0, 8)
    np.testing.assert_allclose(corners(picture.pixels), [[1, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, 1]], atol=0.06)


def colours(tmp_path, resolution=8):
    return one(tmp_path, resolution).pixels[:, 4, 4]


@pytest.mark.parametrize(("alpha", "expected"), [(0, [1, 1, 1]), (255, [1, -1, -1]), (128, [1, -0.004, -0.004])])
def test_transparency_lies_on_white(tmp_path, alpha, expected):
    save(tmp_path / "a.png", np.full((8, 8, 4), [255, 0, 0, alpha]))
    np.testing.assert_allclose(colours(tmp_path), expected, atol=0.005)


def test_grey_with_alpha(tmp_path):
    save(tmp_path / "a.png", np.full((8, 8, 2), [0, 51]))
    np.testing.assert_allclose(colours(tmp_path), 0.6, atol=0.005)


@pytest.mark.parametrize(("clear", "expected"), [(None, [1, -1, 1]), (3, [1, 1, 1]), (2, [1, -1, 1])])
def test_palette(tmp_path, clear, expected):
    image = Image.new("P", (8, 8), 3)
    image.putpalette([0, 0, 0] * 3 + [255, 0, 255])
    image.save(tmp_path / "a.png", **({} if clear is None else {"transparency": clear}))
    np.testing.assert_allclose(colours(tmp_path), expected)


@pytest.mark.parametrize("value", [0, 255, 300, 32768, 65535])
@pytest.mark.parametrize("ending", ["png", "tiff", "pgm"])
def test_sixteen_bit_grey(tmp_path, value, ending):
    values = np.full((8, 8), value, np.uint16)
    if ending == "pgm":  # which older Pillows read but do not write
        (tmp_path / "a.pgm").write_bytes(b"P5 8 8 65535\n" + values.astype(">u2").tobytes())
    else:
        Image.fromarray(values).save(tmp_path / f"a.{ending}")
    np.testing.assert_allclose(colours(tmp_path), value / 65535 * 2 - 1, atol=1 / 255)


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


@pytest.mark.parametrize(("mode", "colour", "expected"), [("L", 255, WHITE), ("1", 0, BLACK), ("1", 1, WHITE)])
def test_grey_and_two_tone(tmp_path, mode, colour, expected):
    Image.new(mode, (8, 8), colour).save(tmp_path / "a.png")
    np.testing.assert_allclose(colours(tmp_path), expected)


@pytest.mark.parametrize("ending", ["jpg", "tiff"])
def test_cmyk(tmp_path, ending):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / f"a.{ending}")
    np.testing.assert_allclose(colours(tmp_path), [1, -1, -1], atol=0.03)


def test_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (8, 8), c) for c in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    np.testing.assert_allclose(colours(tmp_path), [1, -1, -1], atol=0.02)


def test_files_that_are_no_pictures_are_named_in_the_log(tmp_path, caplog):
    save(tmp_path / "a.png", noise(8, 8))
    for name in (".DS_Store", ".hidden.png", "notes.txt", "film.mpg", "IMG_1.HEIC"):
        (tmp_path / name).write_bytes(b"something")
    (tmp_path / "more.png").mkdir()
    save(tmp_path / "more.png" / "deep.png", noise(8, 8))
    with caplog.at_level(logging.INFO, logger="gm"):
        assert one(tmp_path, 8).name == "a.png"
    assert caplog.messages == [
        f"ignored in {tmp_path}, no picture by its ending: IMG_1.HEIC, film.mpg, more.png/, notes.txt"
    ]


def test_hidden_files_are_passed_over_silently(tmp_path, caplog):
    save(tmp_path / "a.png", noise(8, 8))
    (tmp_path / ".DS_Store").write_bytes(b"x")
    with caplog.at_level(logging.INFO, logger="gm"):
        folder.read(tmp_path, 8)
    assert caplog.messages == []


def error(path, resolution=8):
    with pytest.raises(UserError) as caught:
        folder.read(path, resolution)
    return str(caught.value)


@pytest.mark.parametrize("empty", ["", "  "])
def test_empty_data_path(empty):
    assert error(empty) == "--data_path is empty; give the folder of pictures to learn from"


def test_no_such_folder(tmp_path):
    path = tmp_path / "nowhere"
    assert error(path) == f"--data_path {path} is not there; give the folder of pictures to learn from"


def test_a_file_for_a_folder(tmp_path):
    path = save(tmp_path / "a.png", noise(8, 8))
    assert error(path) == f"--data_path {path} is a file; give the folder of pictures to learn from"


def test_empty_folder(tmp_path):
    (tmp_path / ".keep").touch()
    assert error(tmp_path) == f"no picture in {tmp_path}; put 3 to 20 .jpg or .png files right into it"


def test_folder_without_pictures_names_what_it_has(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "a.heic").touch()
    text = f"no picture in {tmp_path} but a.heic, pictures/; put 3 to 20 .jpg or .png files right into it"
    assert error(tmp_path) == text


@pytest.mark.filterwarnings("ignore:.*Truncated:UserWarning")
@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "tiff", "gif", "bmp"])
@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.9])
def test_truncated_picture(tmp_path, ending, kept):
    path = save(tmp_path / f"broken.{ending}", noise(40, 40))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    save(tmp_path / "good.png", noise(40, 40))
    text = error(tmp_path)
    assert text.startswith(f"cannot read the picture {path} (")
    assert text.endswith("); save it again as JPEG or PNG, or remove it")
    assert "\n" not in text


def test_text_that_calls_itself_a_picture(tmp_path):
    (tmp_path / "a.jpg").write_text("<html>not found</html>")
    assert error(tmp_path).startswith(f"cannot read the picture {tmp_path / 'a.jpg'} (cannot identify image file")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("ending", ["png", "jpg", "tiff", "webp"])
def test_damage_anywhere_gives_a_picture_or_a_user_error(tmp_path, ending):
    path = save(tmp_path / f"a.{ending}", noise(24, 24))
    content = path.read_bytes()
    rng = np.random.default_rng(1)
    refused = 0
    for _ in range(60):
        damaged = bytearray(content)
        for place in rng.integers(0, len(content), 12):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            assert one(tmp_path, 8).pixels.shape == (3, 8, 8)
        except UserError:
            refused += 1
    assert refused > 0


def test_floating_point_picture(tmp_path):
    Image.new("F", (8, 8), 0.5).save(tmp_path / "a.tiff")
    assert "(its pixels are floating-point numbers)" in error(tmp_path)


@pytest.mark.parametrize("value", [70_000, -1])
def test_more_than_sixteen_bits(tmp_path, value):
    Image.fromarray(np.full((8, 8), value, np.int32)).save(tmp_path / "a.tiff")
    assert "(its pixels have more than 16 bits)" in error(tmp_path)


def test_decompression_bomb(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png", np.zeros((2000, 1001, 3)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)
    assert error(tmp_path) == f"{path} has more than 2 million pixels; make a smaller copy and use that"


@pytest.mark.parametrize(("height", "width"), [(40, 59), (50, 77), (59, 40), (40, 40), (33, 50)])
def test_mirrored(tmp_path, height, width):
    array = noise(height, width)
    path = save(tmp_path / "a.png", array)
    picture = one(tmp_path, 32)
    flipped = folder.mirrored(picture)
    np.testing.assert_array_equal(flipped.pixels, picture.pixels[:, :, ::-1])
    assert flipped.pixels.flags.c_contiguous
    assert (flipped.name, flipped.original) == ("a.png", (height, width))
    top, left = picture.crop
    whole = round(width * 32 / min(height, width))
    assert flipped.crop == (top, whole - 32 - left)
    back = folder.mirrored(flipped)
    assert back.crop == picture.crop
    save(path, array[:, ::-1])
    other = one(tmp_path, 32)
    if (whole - 32) % 2 == 0:  # else the middle lies one pixel off, on the other side
        np.testing.assert_allclose(flipped.pixels, other.pixels, atol=0.03)


def test_reading_twice_gives_the_same(tmp_path):
    save(tmp_path / "a.jpg", noise(50, 70))
    np.testing.assert_array_equal(one(tmp_path, 24).pixels, one(tmp_path, 24).pixels)
