"""gm/checkpoints/full_pipeline.py: sources, links and copies, and what is refused."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from gm.checkpoints import diffusers_format, full_pipeline
from gm.errors import UserError
from tests.checkpoints.diffusers_folders import assert_published
from tests.checkpoints.full_pipelines import TOKENS, SavedPipeline, contents, edit, random_vectors, write
from tests.reference.case import Case

pytestmark = pytest.mark.reference


def test_a_snapshot_of_the_hub_without_safety_checker_is_taken(
    cases: Callable[[str], Case], saved_pipeline: SavedPipeline, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its files are symbolic links, and the checker is not fetched."""
    caplog.set_level(logging.INFO)
    case, blobs = cases("like-sd1"), saved_pipeline("like-sd1")
    snapshot = tmp_path / "snapshot"
    for path in blobs.rglob("*"):
        if path.is_file():
            link = snapshot / path.relative_to(blobs)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
    index = json.loads((blobs / "model_index.json").read_text())
    index |= {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"], "requires_safety_checker": True}
    (snapshot / "model_index.json").unlink()
    (snapshot / "model_index.json").write_text(json.dumps(index))
    write(snapshot, tmp_path / "out", case.config)
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))
    written = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert written == index | {"safety_checker": [None, None], "requires_safety_checker": False}
    assert "the folder of the base model has no safety_checker; the pipeline is saved without" in caplog.text


def test_networks_of_other_folders_and_a_file_system_without_links(
    smallest: Case, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Path(shutil.copytree(source / "vae", tmp_path / "fp16-fix"))
    edit(other / "config.json", scaling_factor=0.5)

    def link(*arguments: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", link)
    write(source, tmp_path / "out", smallest.config, vae=str(other))
    assert json.loads((tmp_path / "out" / "vae" / "config.json").read_text())["scaling_factor"] == 0.5
    for name in ("unet", "vae"):
        copied, original = (
            (each / name / "diffusion_pytorch_model.safetensors") for each in (tmp_path / "out", source)
        )
        assert not copied.samefile(original)
        assert copied.read_bytes() == original.read_bytes()
    shutil.rmtree(tmp_path / "out" / "tokenizer")
    assert "tokenizer" not in full_pipeline.component_names(tmp_path / "out")
    write(source, tmp_path / "out", smallest.config)  # again, over what is there
    tensors = diffusers_format.read(tmp_path / "out", smallest.config)
    tables = {key for key in tensors if key.endswith("token_embedding.weight")}
    tensors |= {key: diffusers_format.read(source, smallest.config)[key] for key in tables}
    assert_published(tensors, smallest)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: shutil.rmtree(folder / "scheduler"), "model has no complete scheduler; download or copy"),
        (lambda folder: shutil.rmtree(folder / "tokenizer_2"), "model has no complete tokenizer_2"),
        (lambda folder: (folder / "unet/diffusion_pytorch_model.safetensors").unlink(), "has no complete unet"),
        (lambda folder: edit(folder / "model_index.json", text_encoder_2=[None, None]), "no complete text_encoder_2"),
        (lambda folder: edit(folder / "model_index.json", text_encoder_3=["a", "B"]), "no complete text_encoder_3"),
        (
            lambda folder: (folder / "model_index.json").unlink(),
            "--save_as_full_pipeline needs the diffusers folder of the base model as --weight, and .*model has no "
            r"model_index\.json",
        ),
        (
            lambda folder: [(folder / "tokenizer" / name).unlink() for name in ("vocab.json", "tokenizer.json")],
            r"tokenizer has no vocabulary in vocab\.json or tokenizer\.json",
        ),
        (lambda folder: (folder / "tokenizer/added_tokens.json").write_text("[1]"), "is not a config in JSON"),
        (lambda folder: edit(folder / "tokenizer/tokenizer.json", added_tokens=[1]), "is not a tokenizer of transf"),
        (
            lambda folder: (folder / "tokenizer/added_tokens.json").write_text('{"<a>": 49408}'),
            "text_encoder has 49408 token embeddings, and its tokenizer 49409 tokens: they do not belong together",
        ),
    ],
)
def test_what_cannot_be_saved_is_named_before_training(
    smallest: Case, source: Path, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(source)
    with pytest.raises(UserError, match=message):
        full_pipeline.prepare(source, smallest.config, TOKENS)


def test_a_single_file_is_no_pipeline(smallest: Case, source: Path) -> None:
    with pytest.raises(UserError, match=r"as --weight, and .* is a single file; diffusers' from_single_file"):
        full_pipeline.prepare(smallest.path, smallest.config, TOKENS)
    with pytest.raises(UserError, match=r"--vae .* is another file; leave one of the options out"):
        full_pipeline.prepare(source, smallest.config, TOKENS, {"vae": str(smallest.path)})


def test_links_in_the_target_are_not_written_through(smallest: Case, source: Path, tmp_path: Path) -> None:
    before = contents(source)
    pipeline = full_pipeline.prepare(source, smallest.config, TOKENS)
    for place in ("text_encoder", "text_encoder/model.safetensors", "unet/config.json", "model_index.json"):
        target = tmp_path / place.replace("/", "-")
        (target / place).parent.mkdir(parents=True)
        (target / place).symlink_to(source / place)
        with pytest.raises(UserError, match="is a symbolic link, which is not written through; remove it"):
            full_pipeline.write(pipeline, target, random_vectors(smallest.config))
    assert contents(source) == before


def test_a_disk_that_is_full_leaves_no_pipeline(
    smallest: Case, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(source, tmp_path / "out", smallest.config)

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", full)
    monkeypatch.setattr(shutil, "copyfile", full)
    (tmp_path / "out/unet/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"unet/diffusion_pytorch_model.safetensors: the disk is full; make room"):
        write(source, tmp_path / "out", smallest.config)
    assert not (tmp_path / "out" / "model_index.json").exists()
    assert not list((tmp_path / "out").rglob(".*tmp"))
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"cannot write .*file: (File exists|Not a directory)"):
        write(source, tmp_path / "file", smallest.config)
