"""Images of a browser, weights to choose from, and thumbnails."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from demo.app.server import gallery_files, thumbnails, weight_files


def save(path: Path, size: tuple[int, int] = (8, 8), color: str = "red") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)
    return path


def test_images_are_listed_newest_first_packed_and_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        save(tmp_path / f"image_{number:05d}.png")
    save(tmp_path / "grid_00000.png")
    (tmp_path / "image_00003.png").mkdir()
    paths = gallery_files.images(tmp_path)
    assert [path.name for path in paths] == ["image_00002.png", "image_00001.png", "image_00000.png"]
    archive, count = gallery_files.pack(paths)
    with zipfile.ZipFile(io.BytesIO(archive)) as packed:
        assert (count, packed.namelist()) == (3, [path.name for path in paths])
        assert packed.read("image_00001.png") == paths[1].read_bytes()
    monkeypatch.setattr(gallery_files, "_MAX_PACKED", paths[0].stat().st_size + 1)
    assert gallery_files.pack(paths)[1] == 1
    for _ in range(2):  # the second finds it gone
        gallery_files.delete(paths[0])
    assert gallery_files.images(tmp_path) == paths[1:]


def test_weights_are_listed_by_kind(tmp_path: Path) -> None:
    names = ("b.safetensors", "a.ckpt", "sdxl_vae.safetensors", "VAE/other.safetensors", "x/y/z/deep.ckpt", "notes.txt")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        with (tmp_path / name).open("wb") as file:
            file.truncate(2_000_000)  # without its blocks
    (tmp_path / "toy.safetensors").write_bytes(b"an embedding")
    (tmp_path / "diffusers" / "unet").mkdir(parents=True)
    (tmp_path / "diffusers" / "model_index.json").write_text("{}")
    with (tmp_path / "diffusers" / "unet" / "part.safetensors").open("wb") as file:
        file.truncate(2_000_000)
    listed = [str(path.relative_to(tmp_path)) for path in weight_files.checkpoints(tmp_path)]
    assert listed == ["a.ckpt", "b.safetensors", "diffusers"]
    vaes = [str(path.relative_to(tmp_path)) for path in weight_files.vaes(tmp_path)]
    assert vaes == ["sdxl_vae.safetensors", "VAE/other.safetensors"]
    assert weight_files.checkpoints(tmp_path / "gone") == []


def test_thumbnails_are_small_and_follow_the_file(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", (300, 100))
    content = thumbnails.of_image(path, 60)
    assert content
    assert Image.open(io.BytesIO(content)).size == (60, 20)
    square = thumbnails.of_image(path, 60, square=True)
    assert square
    assert Image.open(io.BytesIO(square)).size == (60, 60)
    save(path, (300, 100), "blue")
    changed = thumbnails.of_image(path, 60)
    assert changed
    assert np.asarray(Image.open(io.BytesIO(changed)))[0, 0, 2] > 200
    path.write_bytes(b"\x89PNG\r\n\x1a\n damaged")
    assert thumbnails.of_image(path, 60) is None
    assert thumbnails.of_image(tmp_path / "gone.png", 60) is None


def test_large_images_have_no_thumbnail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thumbnails.uploads, "MAX_PIXELS", 99)
    assert thumbnails.of_image(save(tmp_path / "a.png", (10, 10)), 60) is None


def test_image_of_an_embedding_is_beside_it_or_of_its_run(tmp_path: Path) -> None:
    embedding = tmp_path / "smallest_3_ti.ckpt"
    assert thumbnails.of_embedding(embedding) is None
    for step in (5, 10):
        save(tmp_path / "previews" / f"step_{step}.png")
    save(tmp_path / "previews" / "step_x.png")
    assert thumbnails.of_embedding(embedding) == tmp_path / "previews" / "step_10.png"
    own = save(tmp_path / "smallest_3_ti.preview.png")
    assert thumbnails.of_embedding(embedding) == own
