"""gm/checkpoints/full_pipeline.py: what it writes, as diffusers and transformers load it."""

from __future__ import annotations

import copy
import errno
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.numpy import load_file

from gm.checkpoints import diffusers_format, full_pipeline
from gm.config.model import ModelConfig
from gm.errors import UserError
from tests.checkpoints.diffusers_folders import assert_published
from tests.reference.case import Case
from tests.reference.pipeline import diffusers_pipeline

pytestmark = pytest.mark.reference

TOKENS = ["<cat-toy>", "<cat-toy>_1", "<Style>"]
PROMPT = "a photo of <cat-toy> in <style>, blue"
VOCABULARY = 49408
Saved = Callable[[str], Path]


@pytest.fixture(scope="module")
def saved(cases: Callable[[str], Case], tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """Return the function that saves the pipeline of a model with diffusers, once."""
    place = tmp_path_factory.mktemp("pipelines")

    def save(name: str) -> Path:
        if not (place / name).exists():
            pipe = diffusers_pipeline(cases(name).reference, place / f"files of {name}")
            pipe.save_pretrained(place / name)
            shutil.copytree(place / f"files of {name}", place / name, dirs_exist_ok=True)
        return place / name

    return save


@pytest.fixture
def source(saved: Saved, tmp_path: Path) -> Path:
    """Return a copy of the SDXL pipeline."""
    return Path(shutil.copytree(saved("reversed"), tmp_path / "model"))


def random_vectors(config: ModelConfig, count: int = len(TOKENS)) -> dict[str, np.ndarray]:
    rng = np.random.default_rng()
    return {
        name: (0.05 * rng.standard_normal((count, encoder.width))).astype(np.float32)
        for name, encoder in config.text_encoders.items()
    }


def write(source: Path, target: Path, config: ModelConfig, **networks: str) -> dict[str, np.ndarray]:
    vectors = random_vectors(config)
    full_pipeline.write(full_pipeline.prepare(source, config, TOKENS, networks), target, vectors)
    return vectors


def edit(path: Path, **fields: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@torch.no_grad()
def assert_vectors_are_used(
    pipe: Any, case: Case, vectors: dict[str, np.ndarray], first: int = VOCABULARY, dtype: torch.dtype = torch.float32
) -> None:
    """Assert that each text encoder gives what that of the base model gives with the vectors in its table."""
    reference = case.reference
    encoders = (reference.text_encoder_1, reference.text_encoder_2)
    for name, suffix, base in zip(case.config.text_encoders, ("", "_2"), encoders, strict=False):
        tokenizer, encoder = getattr(pipe, f"tokenizer{suffix}"), getattr(pipe, f"text_encoder{suffix}")
        ids = tokenizer.convert_tokens_to_ids(TOKENS)
        assert ids == [first, first + 1, first + 2]
        assert encoder.config.vocab_size == first + 3
        text = pipe.maybe_convert_prompt(PROMPT, tokenizer)
        tokens = tokenizer(text, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
        assert [n for n in tokens[0].tolist() if n >= VOCABULARY] == ids
        expected = copy.deepcopy(base).to(dtype).float()
        # The helper has set another pooling; 2 in the config, which stays, means the largest id.
        getattr(expected, "text_model", expected).eos_token_id = encoder.config.eos_token_id
        expected.resize_token_embeddings(first + 3, mean_resizing=False)
        expected.get_input_embeddings().weight[first:] = torch.from_numpy(vectors[name])
        wanted = expected(tokens, output_hidden_states=True)
        found = encoder.float()(tokens, output_hidden_states=True)
        for one, other in zip(found.hidden_states, wanted.hidden_states, strict=True):
            assert torch.linalg.norm(one - other) <= 1e-5 * torch.linalg.norm(other)
        torch.testing.assert_close(found[0], wanted[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["reversed", "like-sd1", "like-sd2"])
def test_diffusers_loads_the_pipeline_with_the_vectors(
    cases: Callable[[str], Case], saved: Saved, tmp_path: Path, name: str
) -> None:
    case, source = cases(name), saved(name)
    before = contents(source)
    vectors = write(source, tmp_path / "out", case.config)
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "out")
    assert type(pipe).__name__ == json.loads(before["model_index.json"])["_class_name"]
    assert_vectors_are_used(pipe, case, vectors)
    assert contents(source) == before
    assert set(contents(tmp_path / "out")) == {
        *before,
        *(f"{each}/added_tokens.json" for each in ("tokenizer", "tokenizer_2") if (source / each).exists()),
    }
    for weights in ("unet", "vae"):
        file = f"{weights}/diffusion_pytorch_model.safetensors"
        assert (tmp_path / "out" / file).samefile(source / file)
        assert not (tmp_path / "out" / weights / "config.json").samefile(source / weights / "config.json")
    # What is written is a base model here, too: the rows of the tokens are left out.
    full = diffusers_format.read(tmp_path / "out", case.config)
    table = next(key for key in full if key.endswith("token_embedding.weight"))
    np.testing.assert_array_equal(full.pop(table).read()[:VOCABULARY], case.weights[table])


@pytest.mark.parametrize("with_decoder", [False, True])
def test_a_tokenizer_of_transformers_4_is_extended(
    smallest: Case, source: Path, tmp_path: Path, with_decoder: bool
) -> None:
    """Those have vocab.json and merges.txt; since 4.34 tokenizer_config.json lists added tokens."""
    special = {
        str(number): {
            "content": token,
            "lstrip": False,
            "normalized": True,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for number, token in ((49406, "<|startoftext|>"), (49407, "<|endoftext|>"))
    }
    for folder in (source / "tokenizer", source / "tokenizer_2"):
        (folder / "tokenizer.json").unlink()
        edit(folder / "tokenizer_config.json", **({"added_tokens_decoder": special} if with_decoder else {}))
    vectors = write(source, tmp_path / "out", smallest.config)
    assert_vectors_are_used(DiffusionPipeline.from_pretrained(tmp_path / "out"), smallest, vectors)
    for folder in (tmp_path / "out" / "tokenizer", tmp_path / "out" / "tokenizer_2"):
        added = {token: VOCABULARY + number for number, token in enumerate(TOKENS)}
        assert json.loads((folder / "added_tokens.json").read_text()) == added
        decoder = json.loads((folder / "tokenizer_config.json").read_text()).get("added_tokens_decoder", {})
        assert len(decoder) == (5 if with_decoder else 0)
        assert not (folder / "tokenizer.json").exists()


def test_the_tokens_of_an_earlier_training_stay(smallest: Case, source: Path, tmp_path: Path) -> None:
    first = full_pipeline.prepare(source, smallest.config, ["<dog>", "<dog>_1"])
    before = random_vectors(smallest.config, 2)
    full_pipeline.write(first, tmp_path / "first", before)
    vectors = write(tmp_path / "first", tmp_path / "out", smallest.config)
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "out")
    for name, suffix in (("clip_l", ""), ("clip_g", "_2")):
        tokenizer = getattr(pipe, f"tokenizer{suffix}")
        assert tokenizer.convert_tokens_to_ids(["<dog>", "<dog>_1", *TOKENS]) == list(range(49408, 49413))
        table = getattr(pipe, f"text_encoder{suffix}").get_input_embeddings().weight.detach().numpy()
        np.testing.assert_array_equal(table[VOCABULARY:], np.concatenate((before[name], vectors[name])))
    with pytest.raises(UserError, match=r"tokenizer has the token <DOG>_1 already; choose another --placeholder_token"):
        full_pipeline.prepare(tmp_path / "first", smallest.config, ["<DOG>_1"])


def test_a_half_precision_variant_loses_its_name_and_keeps_the_vectors(
    smallest: Case, source: Path, tmp_path: Path
) -> None:
    pipe = DiffusionPipeline.from_pretrained(source, dtype=torch.float16)
    for path in source.rglob("*.safetensors"):
        path.unlink()
    pipe.save_pretrained(source, variant="fp16", max_shard_size="1MB")
    assert list(source.glob("unet/*.index.fp16.json"))
    (source / "vae" / "flax_model.msgpack").write_bytes(b"of another framework")
    vectors = write(source, tmp_path / "out", smallest.config)
    assert {path.name for path in (tmp_path / "out" / "vae").iterdir()} == {
        "config.json",
        "diffusion_pytorch_model.safetensors",
    }
    loaded = DiffusionPipeline.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert_vectors_are_used(loaded, smallest, vectors, dtype=torch.float16)
    table = load_file(tmp_path / "out" / "text_encoder" / "model.safetensors")
    (key,) = (key for key in table if "token_embedding" in key)
    np.testing.assert_array_equal(table.pop(key)[VOCABULARY:], vectors["clip_l"])
    assert {array.dtype.name for array in table.values()} == {"float16"}
    unet = {name: tensor.half() for name, tensor in smallest.reference.unet.state_dict().items()}
    for name, tensor in loaded.unet.state_dict().items():
        torch.testing.assert_close(tensor, unet[name].float(), rtol=0, atol=0)


def test_files_of_pytorch_and_bfloat16_are_taken(smallest: Case, source: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file as load_torch

    for name, stem in (("text_encoder", "model"), ("unet", "diffusion_pytorch_model")):
        path = source / name / f"{stem}.safetensors"
        target = "pytorch_model" if stem == "model" else stem
        torch.save({key: t.bfloat16() for key, t in load_torch(path).items()}, path.with_name(f"{target}.bin"))
        path.unlink()
    vectors = write(source, tmp_path / "out", smallest.config)
    assert (tmp_path / "out/unet/diffusion_pytorch_model.bin").samefile(source / "unet/diffusion_pytorch_model.bin")
    written = load_file(tmp_path / "out" / "text_encoder" / "model.safetensors")
    for key, tensor in torch.load(source / "text_encoder" / "pytorch_model.bin").items():
        np.testing.assert_array_equal(written[key][: len(tensor)], tensor.float().numpy())
    (key,) = (key for key in written if "token_embedding" in key)
    np.testing.assert_array_equal(written[key][VOCABULARY:], vectors["clip_l"])


def test_a_snapshot_of_the_hub_without_safety_checker_is_taken(
    cases: Callable[[str], Case], saved: Saved, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its files are symbolic links, and the checker is not fetched."""
    caplog.set_level(logging.INFO)
    case, blobs = cases("like-sd1"), saved("like-sd1")
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
