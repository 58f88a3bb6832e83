"""Training images of a browser: added, cropped as training does, captioned, removed and copied for a run."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from demo.app.server import training_images, uploads
from demo.app.server.training_images import Framing
from gm.data import captions, image_folder
from gm.errors import UserError


def png(width: int, height: int, color: str = "red", mode: str = "RGB") -> bytes:
    content = io.BytesIO()
    Image.new(mode, (width, height), color).save(content, "PNG")
    return content.getvalue()


def halves() -> bytes:
    """A wide image: red, a green square in the middle, blue."""
    image = Image.new("RGB", (60, 20), "red")
    image.paste("green", (20, 0, 40, 20))
    image.paste("blue", (40, 0, 60, 20))
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)


def test_images_are_added_one_upload_after_the_other(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    training_images.add([("b.png", png(8, 8))], folder)
    training_images.add([("C:\\photos\\a.png", png(8, 9)), ("a.txt", b"a red {}\n")], folder)
    images = training_images.load(folder)
    assert [(image.name, image.caption) for image in images] == [("a.png", "a red {}"), ("b.png", "")]
    assert training_images.load(tmp_path / "nowhere") == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images"]
    names = [image.path.name for image in images]
    found = captions.load_captions(folder, names, "<toy>", lambda text: "<toy>" in text)
    assert found == (("a red <toy>",), ())


def test_masks_and_captions_may_follow_their_image(tmp_path: Path) -> None:
    training_images.add([("cat.png", png(8, 8))], tmp_path / "images")
    for brightness in ("black", "white"):  # the second replaces the first
        mask = Image.new("L", (8, 8), brightness)
        mask.paste(255, (0, 0, 4, 8))
        content = io.BytesIO()
        mask.save(content, "PNG" if brightness == "black" else "BMP")
        suffix = "png" if brightness == "black" else "bmp"
        training_images.add([(f"cat.mask.{suffix}", content.getvalue())], tmp_path / "images")
    training_images.add([("cat.caption", "a {}".encode("utf-8-sig"))], tmp_path / "images")
    (image,) = training_images.load(tmp_path / "images")
    assert image.caption == "a {}"
    assert image.mask is not None
    assert image.mask.suffix == ".bmp"
    assert len(image_folder.load_images(tmp_path / "images", 8)) == 1


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([("notes.txt", b"a cat")], "notes.txt is by its name the caption of an image that is not here"),
        ([("cat.png", png(8, 8)), ("dog.txt", b"a dog")], "dog.txt is by its name the caption of an image that is not"),
        ([("cat.png", png(8, 8)), ("cat.txt", b"\xff\xfe\xfa")], "cat.txt is not UTF-8 text"),
        ([("cat.png", png(8, 8)), ("cat.txt", b"x" * 10_001)], "the caption cat.txt has 10001 characters"),
        ([("cat.png", png(8, 8)), ("song.mp3", b"ID3")], "song.mp3: an uploaded file is not an image"),
        ([("dog.mask.png", png(8, 8))], "the mask of one that was not uploaded"),
    ],
)
def test_an_upload_with_a_bad_file_adds_nothing(tmp_path: Path, files: list[tuple[str, bytes]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        training_images.add(files, tmp_path / "images")
    assert training_images.load(tmp_path / "images") == []
    training_images.add([("old.png", png(9, 9))], tmp_path / "images")
    with pytest.raises(UserError, match=message):
        training_images.add(files, tmp_path / "images")
    assert [image.name for image in training_images.load(tmp_path / "images")] == ["old.png"]


def test_the_number_of_images_is_limited_over_all_uploads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "MAX_IMAGES", 2)
    training_images.add([("1.png", png(8, 8)), ("2.png", png(8, 9))], tmp_path / "images")
    with pytest.raises(UserError, match="these would be 3 images; at most 2"):
        training_images.add([("3.png", png(8, 10))], tmp_path / "images")
    training_images.add([("again.png", png(8, 8))], tmp_path / "images")
    assert len(training_images.load(tmp_path / "images")) == 2


def test_captions_are_edited_and_images_removed(tmp_path: Path) -> None:
    training_images.add([("1.png", png(8, 8)), ("2.png", png(8, 9)), ("1.txt", b"one")], tmp_path)
    first, second = training_images.load(tmp_path)
    training_images.set_caption(second.path, " two\nor two ")
    training_images.set_caption(first.path, " ")
    assert [image.caption for image in training_images.load(tmp_path)] == ["", "two\nor two"]
    with pytest.raises(UserError, match="the caption has 20000 characters"):
        training_images.set_caption(first.path, "x" * 20_000)
    training_images.remove(training_images.load(tmp_path)[1])
    assert [image.name for image in training_images.load(tmp_path)] == ["1.png"]
    assert not list(tmp_path.glob("*.txt"))


def test_a_run_keeps_the_images_that_it_was_started_with(tmp_path: Path) -> None:
    training_images.add([("1.png", png(8, 8)), ("1.txt", b"one")], tmp_path / "images")
    copied = training_images.copy(tmp_path / "images")
    (image,) = training_images.load(tmp_path / "images")
    training_images.set_caption(image.path, "changed")
    training_images.remove(image)
    assert [(each.name, each.caption) for each in training_images.load(copied)] == [("1.png", "one")]
    assert copied.parent == tmp_path


def test_thumbnails_show_what_training_sees(tmp_path: Path) -> None:
    training_images.add([("wide.png", halves())], tmp_path)
    (image,) = training_images.load(tmp_path)
    square = training_images.thumbnail(image, Framing(16), 32)
    assert (square.original, square.enlarged) == ((20, 60), False)
    assert pixels(square.content).shape == (32, 32, 3)
    assert np.abs(pixels(square.content)[4:-4, 4:-4] - (0, 128, 0)).max() < 12  # the middle alone
    (cropped,) = image_folder.load_images(tmp_path, 16)
    center = (cropped.pixels[:, 8, 8] + 1) * 127.5
    assert np.abs(pixels(square.content)[16, 16] - center).max() < 12
    squashed = training_images.thumbnail(image, Framing(16, center_crop=False), 32)
    assert pixels(squashed.content)[16, 2, 0] > 200
    bucket = training_images.thumbnail(image, Framing(64, ((64, 64), (32, 96))), 48)
    assert pixels(bucket.content).shape == (16, 48, 3)
    assert bucket.enlarged


def test_what_a_mask_hides_is_dark(tmp_path: Path) -> None:
    mask = Image.new("L", (8, 8), 0)
    mask.paste(255, (0, 0, 4, 8))
    content = io.BytesIO()
    mask.save(content, "PNG")
    training_images.add([("a.png", png(8, 8, "white")), ("a.mask.png", content.getvalue())], tmp_path)
    (image,) = training_images.load(tmp_path)
    seen = pixels(training_images.thumbnail(image, Framing(8), 64).content)
    assert seen[32, 8].min() > 240
    assert seen[32, 56].max() < 90


def test_an_image_that_cannot_be_read_is_named_as_the_user_named_it(tmp_path: Path) -> None:
    training_images.add([("mine.png", png(8, 8))], tmp_path)
    (image,) = training_images.load(tmp_path)
    image.path.write_bytes(b"\x89PNG\r\n\x1a\n damaged")
    with pytest.raises(UserError, match=r"^cannot read the image mine.png "):
        training_images.thumbnail(image, Framing(8), 32)
    (tmp_path / training_images.NAMES).write_text("{")
    assert training_images.load(tmp_path)[0].name == image.path.name
