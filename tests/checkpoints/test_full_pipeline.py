"""gm/checkpoints/full_pipeline.py: what it writes, as diffusers and transformers load it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.numpy import load_file

from gm.checkpoints import diffusers_format, full_pipeline
from gm.errors import UserError
from tests.checkpoints.full_pipelines import TOKENS, SavedPipeline, contents, edit, random_vectors, write
from tests.reference.case import Case

pytestmark = pytest.mark.reference

PROMPT = "a photo of <cat-toy> in <style>, blue"
VOCABULARY = 49408


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
    cases: Callable[[str], Case], saved_pipeline: SavedPipeline, tmp_path: Path, name: str
) -> None:
    case, source = cases(name), saved_pipeline(name)
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
