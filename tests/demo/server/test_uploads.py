"""What people send: what is taken, under which name, and what is not."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save as safetensors

from demo.app.server import embedding_list, uploads
from gm.embeddings import io as embedding_io
from gm.embeddings.embedding import Embedding
from gm.errors import UserError


def image(kind: str = "PNG", size: tuple[int, int] = (6, 5), colour: str = "red") -> bytes:
    content = io.BytesIO()
    Image.new("RGB", size, colour).save(content, kind)
    return content.getvalue()


@pytest.mark.parametrize(
    ("kind", "ending"),
    [("PNG", ".png"), ("JPEG", ".jpg"), ("WEBP", ".webp"), ("BMP", ".bmp"), ("GIF", ".gif"), ("TIFF", ".tif")],
)
def test_images_are_stored_as_they_came_under_names_of_our_own(tmp_path: Path, kind: str, ending: str) -> None:
    path = uploads.image(image(kind), tmp_path / "in")
    assert path.parent == tmp_path / "in"
    assert path.suffix == ending
    assert set(path.stem) <= set("0123456789abcdef")
    assert path.read_bytes() == image(kind)
    assert uploads.image(image(kind), tmp_path / "in") == path


def test_what_is_no_image_or_too_large_is_refused_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "PIXELS", 100)
    monkeypatch.setattr(uploads, "IMAGE_BYTES", 5000)
    for content, message in (
        (b"", "the image is empty"),
        (b"<svg onload='x'/>", "no image of a known kind"),
        (b"MZ" + image(), "no image of a known kind"),
        (image()[:40], "cannot read the image"),
        (image(size=(20, 20)), "an image has 20×20 pixels; send one of 0 million"),
        (b"\xff\xd8\xff" + b"x" * 5000, "the image has 0 MB"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            uploads.image(content, tmp_path)
        assert str(tmp_path) not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_several_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = [image(colour="red"), image(colour="blue"), image(colour="red")]
    assert len(uploads.images(sent, tmp_path)) == 2
    with pytest.raises(UserError, match="no image was sent"):
        uploads.images([], tmp_path)
    monkeypatch.setattr(uploads, "IMAGES", 2)
    with pytest.raises(UserError, match="3 images were sent; send 2 at most"):
        uploads.images(sent, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def rows() -> dict[str, np.ndarray]:
    return {"clip_l": np.ones((2, 4), np.float32), "clip_g": np.full((2, 6), 2.0, np.float32)}


def test_a_learned_file_without_a_word_is_called_as_it_was_sent(tmp_path: Path) -> None:
    path = uploads.concept(safetensors(rows()), "../../my cat!.safetensors", tmp_path)
    (found,) = embedding_io.load_all(path)
    assert found.placeholder_token == "<my-cat>"
    assert np.array_equal(found.vectors["clip_g"], rows()["clip_g"])
    assert path.parent == tmp_path
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_learned_file_that_says_its_word_keeps_it(tmp_path: Path) -> None:
    embedding_io.save(
        Embedding("<toy>", dict(zip(("clip_l", "clip_g"), rows().values(), strict=True))), tmp_path / "mine.ckpt"
    )
    path = uploads.concept((tmp_path / "mine.ckpt").read_bytes(), "other.ckpt", tmp_path / "in")
    assert embedding_io.load(path).placeholder_token == "<toy>"
    assert path.name != "other.ckpt"


def test_what_is_no_learned_file_is_refused_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for content in (b"x", image(), safetensors({"clip_l": rows()["clip_l"]})):
        with pytest.raises(UserError) as caught:
            uploads.concept(content, "a.safetensors", tmp_path)
        assert str(tmp_path) not in str(caught.value)
    monkeypatch.setattr(uploads, "CONCEPT_BYTES", 10)
    with pytest.raises(UserError, match="the embedding file has 0 MB; send one of 0 MB at most"):
        uploads.concept(safetensors(rows()), "a", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_learned_words_of_a_folder(tmp_path: Path) -> None:
    assert embedding_list.found(tmp_path) == {}
    toy = Embedding("<toy>", dict(zip(("clip_l", "clip_g"), rows().values(), strict=True)))
    embedding_io.save(toy, tmp_path / "first.ckpt")
    (tmp_path / "run").mkdir()
    embedding_io.save(
        Embedding("<hat>", dict(zip(("clip_l", "clip_g"), rows().values(), strict=True))),
        tmp_path / "run" / "hat.safetensors",
    )
    (tmp_path / "run" / "model.ckpt").write_bytes(b"no embedding file")
    embedding_io.save(
        Embedding("<half>", dict(zip(("clip_l", "clip_g"), rows().values(), strict=True))),
        tmp_path / "run" / "state_5.ckpt",
    )
    embedding_io.save(toy, tmp_path / "first.safetensors")  # the same once more
    (tmp_path / "notes.txt").write_text("x")
    assert set(embedding_list.found(tmp_path)) == {"<toy>", "<hat>"}
    embedding_io.save(toy, tmp_path / "run" / "second.ckpt")
    assert set(embedding_list.found(tmp_path)) == {"<toy> (first.ckpt)", "<toy> (run/second.ckpt)", "<hat>"}
    embedding_io.save(
        Embedding("<cap>", dict(zip(("clip_l", "clip_g"), rows().values(), strict=True))), tmp_path / "first.ckpt"
    )
    assert set(embedding_list.found(tmp_path)) == {"<toy>", "<cap>", "<hat>"}
