"""gm/hub/layout.py, gm/hub/export.py and tools/push_to_hub.py: the published folder, without private paths."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from gm.embeddings import io as embedding_io
from gm.embeddings.io import EmbeddingFile
from gm.errors import UserError
from gm.hub import export, layout
from gm.sampling import image_files
from tests.data import color_profiles
from tests.hub.embedding_files import save_embedding
from tests.project import Call


def test_the_folder_has_the_files_of_every_program(
    publish: Call, embedding_path: Path, generated_image: Path, tmp_path: Path
) -> None:
    target = tmp_path / "out" / "cat-toy"
    code, out, error = publish("--source", embedding_path, "--target", target, "--images", generated_image)
    assert (code, error) == (0, "")
    found = sorted(path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file())
    assert found == [
        "README.md",
        "cat-toy.safetensors",
        "images/0.png",
        "learned_embeds.safetensors",
        "learned_embeds_2.safetensors",
        "token_identifier.txt",
        "type_of_concept.txt",
    ]
    assert out.count("wrote") == len(found)
    assert (target / "token_identifier.txt").read_text() == "<cat-toy>"
    assert (target / "type_of_concept.txt").read_text() == "style"
    before = embedding_io.load(embedding_path)
    assert sorted(load_file(target / "cat-toy.safetensors")) == ["clip_g", "clip_l"]
    for path in (target, target / "cat-toy.safetensors", target / "learned_embeds_2.safetensors"):
        after = embedding_io.load(path)
        assert (after.placeholder_token, after.pooling) == ("<cat-toy>", "end_of_text")
        assert (after.metadata["step"], after.metadata["recipe"]["training"]["total_step"]) == (7, 7)
        assert np.array_equal(after.vectors["clip_l"], before.vectors["clip_l"])
        assert np.array_equal(after.vectors["clip_g"], before.vectors["clip_g"])
    with Image.open(generated_image) as source, Image.open(target / "images/0.png") as copy:
        assert np.array_equal(np.asarray(source), np.asarray(copy))
    assert image_files.read_parameters(target / "images/0.png")["seed"] == 11


def test_private_paths_are_removed(publish: Call, embedding_path: Path, generated_image: Path, tmp_path: Path) -> None:
    assert b"secret" in embedding_path.read_bytes().replace(b"\0", b"")  # as UTF-32
    target = tmp_path / "out"
    assert publish("--source", embedding_path, "--target", target, "--images", generated_image)[0] == 0
    for path in target.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        assert b"secret" not in content
        assert str(tmp_path).encode() not in content
    options = embedding_io.load(target).metadata["recipe"]
    assert options == {
        "run": {"precision": "float32"},
        "concept": {"learnable_property": "style", "template_file": None},
        "data": {"random_flip": True},
        "training": {"total_step": 7},
    }
    assert export.remove_private_paths(
        {"validation_prompt": ["red and/or blue"], "concepts": [{"data_path": "a"}]}
    ) == {"validation_prompt": ["red and/or blue"]}
    assert export.remove_private_paths({"run": {"vae": "mine.safetensors", "unet": "mine", "ms_mode": 1}}) == {
        "run": {"ms_mode": 1}
    }


def test_the_class_word_among_private_options_is_kept(tmp_path: Path) -> None:
    entry = {"placeholder_token": "<a>", "initializer_token": "toy", "data_path": "/home/ann/a"}
    recipe = {"concept": {"concepts": [entry, {"placeholder_token": "<b>", "initializer_token": "hat"}]}}
    path = save_embedding(tmp_path / "a.safetensors", "<a>", metadata={"recipe": recipe})
    metadata = export.prepare(path).embedding.metadata
    assert metadata == {"recipe": {"concept": {}}, "class_word": "toy"}


def test_metadata_of_a_camera_is_removed(embedding_path: Path, tmp_path: Path) -> None:
    photo = Image.fromarray(np.full((8, 8, 3), 200, np.uint8))
    exif = Image.Exif()
    exif[0x010E] = "secret place"
    photo.save(tmp_path / "photo.jpg", exif=exif, comment=b"secret")
    assert b"secret" in (tmp_path / "photo.jpg").read_bytes()
    publication = export.prepare(embedding_path, [tmp_path / "photo.jpg"])
    layout.write(publication, tmp_path / "out")
    assert b"secret" not in (tmp_path / "out/images/0.png").read_bytes()
    assert publication.images[0].parameters == {}


def test_images_are_shown_as_people_see_them(embedding_path: Path, tmp_path: Path) -> None:
    image = np.zeros((6, 8, 3), np.uint8)
    image[:, :4] = (200, 40, 30)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter: the left half becomes the top
    Image.fromarray(image).save(tmp_path / "phone.png", exif=exif)
    opacity = np.where(np.arange(8) < 4, 255, 0).astype(np.uint8)[None].repeat(6, 0)
    Image.fromarray(np.dstack([image, opacity])).save(tmp_path / "cutout.png")
    Image.fromarray(image[..., 0].astype(np.uint16) * 257).save(tmp_path / "gray16.png")
    swapped = color_profiles.swapped()
    Image.fromarray(image).save(tmp_path / "profile.png", icc_profile=swapped)
    names = ("phone", "cutout", "gray16", "profile")
    layout.write(export.prepare(embedding_path, [tmp_path / f"{name}.png" for name in names]), tmp_path / "out")
    phone, cutout, gray, profile = (np.asarray(Image.open(tmp_path / "out/images" / f"{k}.png")) for k in range(4))
    assert np.array_equal(phone, np.rot90(image, -1))
    assert np.array_equal(cutout, np.where(opacity[..., None], image, 255))
    assert np.array_equal(gray, image[..., :1].repeat(3, 2))
    np.testing.assert_allclose(profile[0, 0], (40, 200, 30), atol=6)


@pytest.mark.parametrize("token", ["../../up", "/", "", "a\\b", "<ü>", "." * 99])
def test_no_placeholder_token_leads_out_of_the_folder(tmp_path: Path, token: str) -> None:
    publication = export.prepare(save_embedding(tmp_path / "a_ti.ckpt", token or "<>"))
    for path in layout.write(publication, tmp_path / "out"):
        assert path.resolve().is_relative_to((tmp_path / "out").resolve())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a_ti.ckpt", "out"]


@pytest.mark.parametrize(
    "existing", ["README.md", "cat-toy.safetensors", "learned_embeds_2.safetensors", "images/0.png"]
)
def test_an_existing_file_needs_overwrite(
    publish: Call, embedding_path: Path, generated_image: Path, tmp_path: Path, existing: str
) -> None:
    target = tmp_path / "out"
    (target / existing).parent.mkdir(parents=True)
    (target / existing).write_text("mine")
    (target / "notes.txt").write_text("mine")
    arguments = ("--source", embedding_path, "--target", target, "--images", generated_image)
    code, _, error = publish(*arguments)
    assert code == 2
    assert error == f"error: --target {target / existing} already exists; --overwrite replaces it\n"
    assert (target / existing).read_text() == "mine"
    assert len([path for path in target.rglob("*") if path.is_file()]) == 2
    assert publish(*arguments, "--overwrite")[0] == 0
    assert (target / existing).read_bytes() != b"mine"
    assert (target / "notes.txt").read_text() == "mine"
    again = ("--source", target, "--target", target, "--images", target / "images/0.png", "--overwrite")
    assert publish(*again)[0] == 0  # from the folder itself
    assert image_files.read_parameters(target / "images/0.png")["seed"] == 11


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "@out"], "--source is missing"),
        (["--source", "@a_7_ti.ckpt"], "--target is missing"),
        (["--source", "@nothing.ckpt", "--target", "@out"], "is not a file"),
        (["--source", "@a_7_ti.ckpt", "--target", "@a_7_ti.ckpt"], "is not a folder"),
        (["--source", "@a_7_ti.ckpt", "--target", "@out", "--images", "@no.png"], "no.png is not a file"),
        (["--source", "@a_7_ti.ckpt", "--target", "@out", "--images", "@a_7_ti.ckpt"], "cannot read the image"),
        (
            ["--source", "@a_7_ti.ckpt", "--target", "@out", "--instance_prompt", "a toy"],
            "does not contain the placeholder token",
        ),
        (["--source", "@a_7_ti.ckpt", "--target", "@out", "--type_of_concept", "dog"], "invalid choice: 'dog'"),
        (["--source", "@a_7_ti.ckpt", "--target", "@out", "--push_to_hub", "a b/c"], "is not a repository name"),
        (["--source", "@a_7_ti.ckpt", "--target", "@out", "--push_to_hub", "cat"], "give user/name"),
        (["--source", "@a_7_ti.ckpt", "--target", "@out", "--push_to_hub", "a/b/c"], "give user/name"),
    ],
)
def test_a_mistake_is_reported_in_one_line(
    publish: Call, embedding_path: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    code, _, error = publish(*(a.replace("@", f"{tmp_path}/") for a in arguments))
    assert code == 2
    assert message in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a_7_ti.ckpt"]


def test_paths_in_the_home_folder_and_private_without_a_repository(
    publish: Call, embedding_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    code, out, error = publish("--source=~/a_7_ti.ckpt", "--target=~/published", "--private")
    assert code == 0, error
    assert "--private has no effect without --push_to_hub: the folder is written, nothing is uploaded" in out
    assert (tmp_path / "published" / "README.md").is_file()


def test_a_file_of_several_embeddings_is_refused(tmp_path: Path) -> None:
    vectors = {"clip_l": np.ones((1, 3), np.float32), "clip_g": np.ones((1, 5), np.float32)}
    file = EmbeddingFile("clip", {"<a>": vectors, "<b>": vectors})
    embedding_io.write_file(file, tmp_path / "learned_embeds.bin", "diffusers")
    with pytest.raises(UserError, match="holds several embeddings"):
        export.prepare(tmp_path)


@pytest.mark.reference
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("as_file", [True, False])
def test_a_folder_of_the_concepts_library_loads(tmp_path: Path, suffix: str, as_file: bool) -> None:
    """A placeholder token that the file does not name is read from beside it."""
    import torch

    tensors = {"clip_l": torch.ones(2, 3), "clip_g": torch.ones(2, 5)}
    path = tmp_path / f"learned_embeds.{suffix}"
    if suffix == "bin":
        torch.save(tensors, path)
    else:
        save_file({name: values.numpy() for name, values in tensors.items()}, path)
    assert embedding_io.load(path).placeholder_token == "learned_embeds"
    (tmp_path / "token_identifier.txt").write_text("<cät>\n", encoding="utf-8")
    (tmp_path / "type_of_concept.txt").write_text("object")
    assert [each.placeholder_token for each in embedding_io.load_all(path if as_file else tmp_path)] == ["<cät>"]
    torch.save({"<own>": torch.ones(2, 3)}, tmp_path / "learned_embeds.bin")
    torch.save({"<own>": torch.ones(2, 5)}, tmp_path / "learned_embeds_2.bin")
    assert embedding_io.load(tmp_path / "learned_embeds.bin").placeholder_token == "<own>"
    (tmp_path / "token_identifier.txt").write_bytes(b"\xff\xfe")
    save_file({name: values.numpy() for name, values in tensors.items()}, tmp_path / "learned_embeds.safetensors")
    with pytest.raises(UserError, match=r"token_identifier\.txt does not hold a placeholder token"):
        embedding_io.load(tmp_path)


def test_what_other_programs_say_of_an_embedding_is_published(embedding_path: Path, tmp_path: Path) -> None:
    said = {"modelspec.author": "me", "modelspec.license": "CC0-1.0", "modelspec.architecture": "a/textual-inversion"}
    save_embedding(embedding_path, metadata={**said, "modelspec.title": "/home/ann/secret.safetensors", "step": 7})
    layout.write(export.prepare(embedding_path), tmp_path / "out")
    for name in ("learned_embeds.safetensors", "cat-toy.safetensors"):
        metadata = embedding_io.read_file(tmp_path / "out" / name).metadata
        assert said.items() <= metadata.items()
        assert "modelspec.title" not in metadata
