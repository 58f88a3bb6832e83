"""Images loaded from a folder: ignored files and error messages."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from PIL import Image

from gm.data import image_folder
from gm.errors import UserError
from tests.data.images import noise, one, save


def test_files_that_are_not_images_are_named_in_the_log(tmp_path, caplog):
    save(tmp_path / "a.png", noise(8, 8))
    for name in (".DS_Store", ".hidden.png", "notes.txt", "film.mpg", "IMG_1.HEIC"):
        (tmp_path / name).write_bytes(b"something")
    (tmp_path / "more.png").mkdir()
    save(tmp_path / "more.png" / "deep.png", noise(8, 8))
    with caplog.at_level(logging.INFO, logger="gm"):
        assert one(tmp_path, 8).name == "a.png"
    assert caplog.messages == [
        f"ignored in {tmp_path}, not an image by its suffix: IMG_1.HEIC, film.mpg, more.png/, notes.txt"
    ]


def test_hidden_files_are_skipped_silently(tmp_path, caplog):
    save(tmp_path / "a.png", noise(8, 8))
    (tmp_path / ".DS_Store").write_bytes(b"x")
    with caplog.at_level(logging.INFO, logger="gm"):
        image_folder.load_images(tmp_path, 8)
    assert caplog.messages == []


def test_masks_that_are_not_used_are_named_and_not_trained_on(tmp_path, caplog):
    for name in ("a.png", "b.mask.png", "c-masklabel.PNG", "a-condlabel.png", "d.MASK.jpg"):
        save(tmp_path / name, noise(8, 8))
    assert one(tmp_path, 8).name == "a.png"
    assert caplog.messages == [
        f"masks in {tmp_path} without an image of the same name, not used: b.mask.png, c-masklabel.PNG, d.MASK.jpg",
        f"conditioning images of OneTrainer in {tmp_path}, not used: a-condlabel.png",
    ]


def test_an_image_that_looks_like_the_mask_of_another_is_named(tmp_path, caplog):
    for name in ("a.png", "a_mask.jpg", "ski-mask.png"):
        save(tmp_path / name, noise(8, 8))
    assert len(image_folder.load_images(tmp_path, 8)) == 3
    path = tmp_path / "a_mask.jpg"
    assert caplog.messages == [f"{path} is used as an image; if it is the mask of a, name it a.mask.jpg"]


def test_a_folder_of_masks_alone_has_no_image(tmp_path):
    save(tmp_path / "a.mask.png", noise(8, 8))
    assert error(tmp_path).startswith(f"no image in {tmp_path} but a.mask.png; put")


def error(path, resolution=8):
    with pytest.raises(UserError) as caught:
        image_folder.load_images(path, resolution)
    return str(caught.value)


@pytest.mark.parametrize("empty", ["", "  "])
def test_empty_data_path(empty):
    assert error(empty) == "--data_path is empty; give the folder of training images"


def test_no_such_folder(tmp_path):
    path = tmp_path / "nowhere"
    assert error(path) == f"--data_path {path} does not exist; give the folder of training images"


def test_a_file_for_a_folder(tmp_path):
    path = save(tmp_path / "a.png", noise(8, 8))
    assert error(path) == f"--data_path {path} is a file; give the folder of training images"


def test_empty_folder(tmp_path):
    (tmp_path / ".keep").touch()
    assert error(tmp_path) == f"no image in {tmp_path}; put 3 to 20 .jpg or .png files directly into it"


def test_folder_without_images_names_what_it_has(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "a.heic").touch()
    text = f"no image in {tmp_path} but a.heic, images/; put 3 to 20 .jpg or .png files directly into it"
    assert error(tmp_path) == text


@pytest.mark.filterwarnings("ignore:.*Truncated:UserWarning")
@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "tiff", "gif", "bmp"])
@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.5, 0.9])
def test_truncated_image(tmp_path, ending, fraction):
    path = save(tmp_path / f"broken.{ending}", noise(40, 40))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])
    save(tmp_path / "good.png", noise(40, 40))
    text = error(tmp_path)
    assert text.startswith(f"cannot read the image {path} (")
    assert text.endswith("); save it again as JPEG or PNG, or remove it")
    assert "\n" not in text


def test_a_text_file_with_the_suffix_of_an_image(tmp_path):
    (tmp_path / "a.jpg").write_text("<html>not found</html>")
    assert error(tmp_path).startswith(f"cannot read the image {tmp_path / 'a.jpg'} (cannot identify image file")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("ending", ["png", "jpg", "tiff", "webp"])
def test_damage_anywhere_gives_an_image_or_a_user_error(tmp_path, ending):
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


@pytest.mark.parametrize("value", [-0.1, 255.0, float("nan")])
def test_floating_point_image_without_a_certain_white(tmp_path, value):
    Image.new("F", (8, 8), value).save(tmp_path / "a.tiff")
    assert "(its pixels are floating-point numbers that are not all from 0, black, to 1, white)" in error(tmp_path)


@pytest.mark.parametrize("value", [70_000, -1])
def test_more_than_sixteen_bits(tmp_path, value):
    Image.fromarray(np.full((8, 8), value, np.int32)).save(tmp_path / "a.tiff")
    assert "(its pixels have more than 16 bits)" in error(tmp_path)


def test_decompression_bomb(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png", np.zeros((2000, 1001, 3)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)
    assert error(tmp_path) == f"{path} has more than 2 million pixels; make a smaller copy and use that"
