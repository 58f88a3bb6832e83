"""Embeddings of OneTrainer, kohya, cog-sdxl and others: read as they mean them, or refused as what they are."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from gm.config.model import ModelConfig
from gm.config.networks import TextEncoderConfig, UNetConfig
from gm.embeddings import io as embedding_io
from gm.embeddings.embedding import combine
from gm.errors import UserError
from tests.embeddings.samples import assert_same_vectors

XTI = [*(f"IN{n:02}" for n in (1, 2, 4, 5, 7, 8)), "MID", *(f"OUT{n:02}" for n in range(3, 12))]
L, G = (np.random.default_rng(width).standard_normal((2, width)).astype(np.float32) for width in (768, 1280))
BOTH = {"clip_l": L, "clip_g": G}
SMALL_L, SMALL_G = L[:, :16].copy(), G[:, :24].copy()


def rows(width: int, num_vectors: int = 2) -> np.ndarray:
    return np.ones((num_vectors, width), np.float32)


def zeros_like(vectors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {key: np.zeros_like(array) for key, array in vectors.items()}


def save(folder: Path, tree: dict[str, np.ndarray], metadata: dict[str, str] | None = None) -> Path:
    path = folder / "my-toy.safetensors"
    save_file(tree, path, metadata)
    return path


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({**zeros_like(BOTH), "clip_l_out": L, "clip_g_out": G}, r"an output embedding of OneTrainer \(clip_l_out, "),
        ({"clip_l_out": L, "clip_g_out": G}, "an output embedding of OneTrainer .*; train it there without output"),
        (
            {"emp_params": np.zeros_like(L), "emp_params_out": L},
            r"an output embedding of OneTrainer \(emp_params_out\)",
        ),
        (
            dict.fromkeys(XTI, L[:1]),
            r"an embedding of extended textual inversion \(kohya's .*16 layers",
        ),
        (
            {"emb_params": rows(1024)},
            r"vectors of 1024 values, .*\(OpenCLIP H .* Stable Diffusion 2\); train",
        ),
        ({"<toy>": rows(1024)}, "vectors of 1024 values, an embedding of another model"),
        ({"clip_l": rows(1024), "clip_g": G}, "vectors of 1024 values, an embedding of another model"),
        (
            {"t5": rows(4096)},
            r"vectors of 4096 values, .*\(T5 and Llama .* Stable Diffusion 3",
        ),
        ({"gemma": rows(2304)}, "vectors of 2304 values, .*Gemma 2"),
        ({"clip_l": L, "clip_g": L}, "vectors of 768 values for both text encoders; get the file again"),
        ({"text_encoders_0": L, "text_encoders_1": L}, "vectors of 768 values for both text encoders"),
    ],
)
def test_what_sdxl_cannot_take_is_refused_as_what_it_is(
    tmp_path: Path, tree: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(UserError, match=rf"my-toy\.safetensors holds {message}"):
        embedding_io.load_all(save(tmp_path, tree))


@pytest.mark.parametrize(
    ("tree", "remark"),
    [
        ({**BOTH, "t5": rows(4096)}, r"t5 \(T5, of Stable Diffusion 3, Flux and others\) not used"),
        (
            {**BOTH, "t5xxl": rows(4096), "llama": rows(4096)},
            r"llama \(Llama, .*\), t5xxl \(T5, .*\) not used",
        ),
        ({**BOTH, "clip_l_out": L}, r"clip_l_out \(OneTrainer's output embedding\) not used"),
        ({**BOTH, "mine": L}, "mine not used"),
        ({"text_encoders_0": L, "text_encoders_1": G, "text_encoders_2": rows(4096)}, "text_encoders_2 not used"),
        ({"clip_l": G, "clip_g": L}, "vectors as wide as OpenCLIP bigG, text encoder 2, used there"),
        ({"text_encoders_0": G, "text_encoders_1": L}, "vectors as wide as CLIP-L, text encoder 1, used there"),
    ],
)
def test_vectors_of_sdxl_are_used_in_their_text_encoder_and_the_rest_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, tree: dict[str, np.ndarray], remark: str
) -> None:
    path = save(tmp_path, tree)
    embedding = embedding_io.load(path)
    assert_same_vectors(embedding.vectors, BOTH)
    assert any(re.match(f"{re.escape(str(path))}: {remark}", message) for message in caplog.messages)


@pytest.mark.parametrize(
    ("tree", "metadata", "encoder"),
    [
        ({"clip_g": SMALL_G}, None, "clip_g"),
        ({"clip_l": SMALL_L}, None, "clip_l"),
        ({"text_encoders_0": SMALL_L}, None, "clip_l"),
        ({"<toy>": SMALL_L}, {"modelspec.architecture": "stable-diffusion-xl-v1-base/textual-inversion"}, "clip_l"),
    ],
)
def test_an_embedding_of_one_text_encoder_of_sdxl_is_used_there(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    tree: dict[str, np.ndarray],
    metadata: dict[str, str] | None,
    encoder: str,
) -> None:
    config = ModelConfig(
        text_encoder_1=TextEncoderConfig(width=16, layers=2, heads=2),
        text_encoder_2=TextEncoderConfig(width=24, layers=2, heads=2),
        unet=UNetConfig(context_dim=40, adm_in_channels=72),
    )
    path = save(tmp_path, tree, metadata)
    (embedding,) = embedding_io.load_all(path)
    (array,) = tree.values()
    assert_same_vectors(embedding.vectors, {encoder: array})
    other = "OpenCLIP bigG" if encoder == "clip_l" else "CLIP-L"
    assert f"has no vectors for {other}" in caplog.text
    assert "which gets zeros in their place" in caplog.text
    vectors = combine([embedding], config).vectors
    assert np.array_equal(vectors[encoder], array)
    assert not vectors["clip_g" if encoder == "clip_l" else "clip_l"].any()
    with pytest.raises(UserError, match=f"lacks the vectors of {other}.*train the embedding in both"):
        embedding_io.load(path)  # for training, publishing and mixing
    for suffix in (".ckpt", ".safetensors"):
        embedding_io.save(embedding, tmp_path / f"again{suffix}")
        (again,) = embedding_io.load_all(tmp_path / f"again{suffix}")
        assert_same_vectors(again.vectors, {encoder: array})


@pytest.mark.parametrize(
    ("tree", "metadata", "model"),
    [
        ({"clip_l": L, "t5": rows(4096)}, None, "one with T5, of Stable Diffusion 3, Flux and others"),
        ({"clip_l": L, "llama": rows(4096)}, None, "one with Llama, of HiDream and HunyuanVideo"),
        ({"clip_l": L}, {"modelspec.architecture": "stable-diffusion-v1/textual-inversion"}, "stable-diffusion-v1"),
        ({"emp_params": L}, None, "probably Stable Diffusion 1"),
        ({"<toy>": L}, None, "probably Stable Diffusion 1"),
    ],
)
def test_one_text_encoder_of_another_model_is_refused(
    tmp_path: Path, tree: dict[str, np.ndarray], metadata: dict[str, str] | None, model: str
) -> None:
    with pytest.raises(UserError, match=rf"lacks the vectors of OpenCLIP bigG.* another model \({model}\): train"):
        embedding_io.load_all(save(tmp_path, tree, metadata))


def test_both_text_encoders_of_another_model_are_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    embedding_io.load(save(tmp_path, BOTH, {"modelspec.architecture": "stable-diffusion-3-medium/textual-inversion"}))
    assert "says that it was trained on stable-diffusion-3-medium" in caplog.text


def test_embeddings_for_stable_diffusion_convert_among_themselves(tmp_path: Path) -> None:
    for key, array, encoder in (("emp_params", L, "clip_l"), ("emb_params", rows(1024), "clip_h")):
        file = embedding_io.read_file(save(tmp_path, {key: array}))
        assert_same_vectors(file.vectors[None], {encoder: array})
        for format_, name in (("a1111", "a.pt"), ("kohya", "a.safetensors")):
            embedding_io.write_file(file, tmp_path / name, format_, overwrite=True)
            (vectors,) = embedding_io.read_file(tmp_path / name).vectors.values()
            assert_same_vectors(vectors, {encoder: array})


def test_embeddings_in_a_lora_are_read_and_the_lora_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lora = {"lora_unet_a.lora_down.weight": np.ones((4, 8), np.float32), "lora_unet_a.alpha": np.float32(4)}
    bundles = {f"bundle_emb.{token}.{key}": array for token in ("<cat>", "<v1.5-dog>") for key, array in BOTH.items()}
    metadata = {"modelspec.author": "me", "modelspec.architecture": "stable-diffusion-xl-v1-base/lora", "ss_lr": "1"}
    path = save(tmp_path, {**{key: np.asarray(value) for key, value in lora.items()}, **bundles}, metadata)
    embeddings = {each.placeholder_token: each for each in embedding_io.load_all(path)}
    assert set(embeddings) == {"<cat>", "<v1.5-dog>"}
    for embedding in embeddings.values():
        assert_same_vectors(embedding.vectors, BOTH)
        assert embedding.pooling == "unknown"
        assert embedding.metadata["modelspec.author"] == "me"
        assert embedding.metadata["modelspec.architecture"].endswith("/textual-inversion")
        assert "ss_lr" not in embedding.metadata
    assert "the LoRA (2 tensors and its metadata) not used" in caplog.text


def test_a_bundle_of_automatic1111_and_one_that_is_unknown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tree = {"bundle_emb.toy.string_to_param.*": L, "bundle_emb.odd.x": np.ones((2, 3, 4), np.float32)}
    path = save(tmp_path, tree)
    file = embedding_io.read_file(path)
    assert_same_vectors(file.vectors["toy"], {"clip_l": L})
    embedding_io.log_remarks(file, path)
    assert "no vectors that are known in the bundled odd, not used" in caplog.text


def test_a_lora_without_embeddings_is_still_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not an embedding file: it seems to be a LoRA"):
        embedding_io.load_all(save(tmp_path, {"lora_unet_a.lora_down.weight": rows(8)}))


def save_cog(folder: Path, parameters: str | bytes | None, num_vectors: int = 2) -> Path:
    tree = {"text_encoders_0": rows(768, num_vectors), "text_encoders_1": rows(1280, num_vectors)}
    tree["text_encoders_0"][:, 0] = np.arange(num_vectors)
    save_file(tree, folder / "embeddings.pti")
    if parameters is not None:
        (folder / "special_params.json").write_bytes(
            parameters if isinstance(parameters, bytes) else parameters.encode()
        )
    return folder / "embeddings.pti"


def test_the_tokens_of_cog_are_those_of_its_special_params(tmp_path: Path) -> None:
    path = save_cog(tmp_path, '{"TOK": "<s0><s1>"}')
    for source in (path, tmp_path):
        embedding = embedding_io.load(source)
        assert (embedding.placeholder_token, embedding.num_vectors, embedding.pooling) == (
            "<TOK>",
            2,
            "argmax",
        )  # TOK is a token of CLIP
    save_cog(tmp_path, '{"A": "<s2>", "B": "<s0><s1>"}', 3)
    first, second = embedding_io.load_all(path)
    assert (first.placeholder_token, second.placeholder_token) == ("<A>", "<B>")
    assert first.vectors["clip_l"][:, 0].tolist() == [2]
    assert second.vectors["clip_l"][:, 0].tolist() == [0, 1]
    save_cog(tmp_path, None)
    (tmp_path / "special_params.json").unlink()
    assert embedding_io.load(path).placeholder_token == "embeddings"


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ('{"TOK": "<s0>"}', "does not name each of the 2 vectors of embeddings.pti once"),
        ('{"TOK": "<s0><s1><s2>"}', "does not name each of the 2 vectors"),
        ("{}", "does not name each of the 2 vectors"),
        ('{"TOK": 3}', "does not name placeholder tokens as in"),
        ("[1]", "does not name placeholder tokens as in"),
        ("{", "cannot read .*special_params.json"),
        (b"\xff\xfe\x00", "cannot read .*special_params.json"),
        ("[" * 100_000, "cannot read .*special_params.json"),
    ],
)
def test_special_params_that_contradict_the_embedding_are_refused(
    tmp_path: Path, parameters: str | bytes, message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        embedding_io.load_all(save_cog(tmp_path, parameters))
    assert len(str(caught.value).splitlines()) == 1


def test_a_number_of_vectors_that_contradicts_them_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="says num_vectors 3 and holds 2: the file is damaged"):
        embedding_io.load_all(save(tmp_path, BOTH, {"num_vectors": "3"}))


@pytest.mark.reference
def test_single_tensors_and_lists_of_dicts_of_pytorch_are_read(tmp_path: Path) -> None:
    import torch

    tensor_l, tensor_g = torch.from_numpy(L), torch.from_numpy(G)
    both = {"clip_l": L, "clip_g": G}
    four = {"clip_l": np.concatenate([L, L]), "clip_g": np.concatenate([G, G])}
    path = tmp_path / "my-toy.pt"
    for saved, expected in (
        (tensor_l, {None: {"clip_l": L}}),
        (tensor_g[0].half(), {None: {"clip_g": G[:1].astype(np.float16).astype(np.float32)}}),
        ([{"<toy>": tensor_l}, {"<toy>": tensor_g}], {"<toy>": both}),
        ([{"<toy>": tensor_l[0]}], {"<toy>": {"clip_l": L[:1]}}),
        ([{"clip_l": tensor_l}, {"clip_g": tensor_g}], {None: both}),
        ([{"a": tensor_l}, {"b": tensor_g}], {None: both}),
        ([{"<a>": tensor_l}, {"<b>": tensor_l}], {"<a>": {"clip_l": L}, "<b>": {"clip_l": L}}),
        ([{"<a>": tensor_l}, {"<a>": tensor_g}, {"<a>": tensor_l}, {"<a>": tensor_g}], {"<a>": four}),
    ):
        torch.save(saved, path)
        file = embedding_io.read_file(path)
        assert list(file.vectors) == list(expected)
        for token, vectors in expected.items():
            assert_same_vectors(file.vectors[token], vectors)
            assert file.token_metadata(token)["pooling"] == "unknown"
    torch.save([{"<toy>": tensor_l}, {"<toy>": tensor_g}], path)
    assert embedding_io.load(path).placeholder_token == "<toy>"


@pytest.mark.reference
def test_a_numpy_scalar_as_step_is_read(tmp_path: Path) -> None:
    import torch

    path = tmp_path / "a.pt"
    torch.save({"string_to_param": {"*": torch.from_numpy(L)}, "name": np.str_("toy"), "step": np.int64(499)}, path)
    file = embedding_io.read_file(path)
    assert (list(file.vectors), file.metadata["step"]) == (["toy"], 499)


def test_remarks_are_logged_at_the_warning_level(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    embedding_io.load(save(tmp_path, {**BOTH, "t5": rows(4096)}))
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
