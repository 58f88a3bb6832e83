"""LoRAs merged into weights: values, precision, strengths, what is logged."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gm.checkpoints import containers, loading, torch_format
from gm.checkpoints.key_mapping import parameter_shapes
from gm.checkpoints.lazy_tensor import in_memory
from gm.errors import UserError
from gm.lora import files, merging
from gm.models import stable_diffusion
from tests.lora.conftest import TEXT_LAYER, UNET_LAYER, WriteLora, delta
from tests.lora.merged import UNET_WEIGHT, load_shape, merged, values
from tests.project import Workshop

QKV = "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight"


def test_only_the_named_layers_change(workshop: Workshop, write_lora: WriteLora) -> None:
    path = write_lora()
    tensors = load_file(path)
    model = merged(workshop, path)
    np.testing.assert_allclose(
        values(model, UNET_WEIGHT),
        values(workshop.model, UNET_WEIGHT) + delta(tensors, UNET_LAYER),
        rtol=1e-5,
        atol=1e-6,
    )
    expected = values(workshop.model, QKV).copy()
    width = expected.shape[1]
    expected[width : 2 * width] += delta(tensors, TEXT_LAYER)
    np.testing.assert_allclose(values(model, QKV), expected, rtol=1e-5, atol=1e-6)
    for parameter in model.get_parameters():
        if parameter.name not in (UNET_WEIGHT, QKV):
            assert np.array_equal(parameter.asnumpy(), values(workshop.model, parameter.name)), parameter.name


def test_float16_weights_are_summed_in_float32_and_rounded_once(
    workshop: Workshop, write_lora: WriteLora, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tensors = containers.read(workshop.folder / "weights.ckpt").tensors
    half = {name: in_memory(tensor.read().astype(np.float16)) for name, tensor in tensors.items()}
    containers.write(tmp_path / "half.ckpt", half)
    path = write_lora()
    single = merged(workshop, path, weights=tmp_path / "half.ckpt")
    with caplog.at_level(logging.INFO, "gm"):
        model = merged(workshop, path, weights=tmp_path / "half.ckpt", dtype=ms.float16)
    assert "2 weights with LoRAs are summed in float32 and rounded to Float16" in caplog.text
    for name in (UNET_WEIGHT, QKV):
        assert np.array_equal(values(model, name), values(single, name).astype(np.float16)), name
    # The same where --low_memory keeps the file's float16 weights in a float32 model.
    config = workshop.config().model
    low_memory = stable_diffusion.build(config)
    changes = merging.prepare([str(path)], parameter_shapes(low_memory), config)
    loading.load_weights(low_memory, tmp_path / "half.ckpt", config, keep_half_above=1, changes=changes)
    assert np.array_equal(values(low_memory, UNET_WEIGHT), values(model, UNET_WEIGHT))


def test_strength_0_changes_no_bit_and_minus_takes_back(workshop: Workshop, write_lora: WriteLora) -> None:
    path = write_lora()
    config = workshop.config().model
    assert UNET_WEIGHT not in merging.prepare([f"{path}:0"], parameter_shapes(workshop.model), config)
    model = merged(workshop, f"{path}:0")
    assert all(np.array_equal(p.asnumpy(), values(workshop.model, p.name)) for p in model.get_parameters())
    plus, minus = merged(workshop, f"{path}:2"), merged(workshop, f"{path}:-2")
    middle = (values(plus, UNET_WEIGHT) + values(minus, UNET_WEIGHT)) / 2
    np.testing.assert_allclose(middle, values(workshop.model, UNET_WEIGHT), atol=1e-5)
    assert not np.allclose(values(plus, UNET_WEIGHT), middle, atol=0.1)


def test_norms_and_so_the_fingerprint_stay(workshop: Workshop, write_lora: WriteLora) -> None:
    assert stable_diffusion.fingerprint(merged(workshop, write_lora())) == stable_diffusion.fingerprint(workshop.model)


def test_pytorch_and_mindspore_files_are_read(workshop: Workshop, write_lora: WriteLora, tmp_path: Path) -> None:
    path = write_lora()
    tensors = load_file(path)
    torch_format.write(tmp_path / "a.pt", {name: np.atleast_1d(array) for name, array in tensors.items()})
    containers.write(tmp_path / "a.ckpt", {name: in_memory(np.atleast_1d(array)) for name, array in tensors.items()})
    expected = values(merged(workshop, path), QKV)
    for name in ("a.pt", "a.ckpt"):
        assert np.array_equal(values(merged(workshop, tmp_path / name), QKV), expected), name


def test_half_precision_files_and_integer_alpha_are_read(workshop: Workshop, tmp_path: Path) -> None:
    tensors = {key: array.astype(np.float16) for key, array in load_shape(workshop, UNET_LAYER).items()}
    tensors[f"{UNET_LAYER}.alpha"] = np.array(1, np.int64)
    save_file(tensors, tmp_path / "a.safetensors")
    expected = values(workshop.model, UNET_WEIGHT) + delta(
        {k: v.astype(np.float32) for k, v in tensors.items()}, UNET_LAYER
    )
    np.testing.assert_allclose(values(merged(workshop, tmp_path / "a.safetensors"), UNET_WEIGHT), expected, atol=1e-5)


def test_a_layer_that_is_in_the_file_twice_is_used_once(
    workshop: Workshop, write_lora: WriteLora, caplog: pytest.LogCaptureFixture
) -> None:
    """Some files have the published and diffusers' path, which other programs do not add up either."""
    other = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    path = write_lora(modules=(UNET_LAYER, other))
    with caplog.at_level(logging.INFO, "gm"):
        model = merged(workshop, path)
    assert "1 layers under two names" in caplog.text
    expected = values(workshop.model, UNET_WEIGHT) + delta(load_file(path), other)
    np.testing.assert_allclose(values(model, UNET_WEIGHT), expected, rtol=1e-5, atol=1e-5)


def test_what_the_file_says_is_logged(
    workshop: Workshop, write_lora: WriteLora, caplog: pytest.LogCaptureFixture
) -> None:
    bundled = {
        "bundle_emb.<toy>.clip_l": np.zeros((1, 16), np.float32),
        "bundle_emb.<toy>.clip_g": np.zeros((1, 24), np.float32),
    }
    bundled["lora_te1_text_projection.alpha"] = np.array(1, np.float32)
    metadata = {"ss_sd_model_name": "sd_xl_base_1.0.safetensors", "modelspec.trigger_phrase": "toycat"}
    path = write_lora(more=bundled, metadata=metadata)
    with caplog.at_level(logging.INFO, "gm"):
        merged(workshop, f"{path}:0.8")
    assert f"the embeddings in it, <toy>, are used with --textual_inversion_weight {path}" in caplog.text
    assert "not used: lora_te1_text_projection, which no image depends on" in caplog.text
    said = "trained on: sd_xl_base_1.0.safetensors; trigger phrase: toycat"
    assert f"merging {path}:0.8 into 2 layers; {said}" in caplog.text


@pytest.mark.parametrize(("said", "warned"), [("v", True), ("v_prediction", True), ("epsilon", False)])
def test_a_lora_of_the_other_kind_of_prediction_is_named(
    workshop: Workshop, write_lora: WriteLora, caplog: pytest.LogCaptureFixture, said: str, warned: bool
) -> None:
    path = write_lora(metadata={"modelspec.prediction_type": said})
    merging.prepare([str(path)], parameter_shapes(workshop.model), workshop.config().model)
    warning = f"{path} was trained on a model that predicts v_prediction, and this one predicts epsilon"
    assert (warning in caplog.text) == warned


def test_pefts_own_folder_has_its_scale_beside(workshop: Workshop, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    module = "base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    tensors = load_shape(workshop, UNET_LAYER)
    names = {"down": "A", "up": "B"}
    renamed = {f"{module}.lora_{b}.weight": tensors[f"{UNET_LAYER}.lora_{a}.weight"] for a, b in names.items()}
    save_file(renamed, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 1}))
    expected = values(workshop.model, UNET_WEIGHT) + delta(tensors, UNET_LAYER)
    np.testing.assert_allclose(values(merged(workshop, folder), UNET_WEIGHT), expected, rtol=1e-5, atol=1e-5)


def test_a_converted_file_has_the_loras_merged_and_is_not_merged_twice(
    workshop: Workshop, write_lora: WriteLora, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = write_lora("a.safetensors", seed=1), write_lora("b.safetensors", seed=2)
    config = workshop.config().model
    weights, target = workshop.folder / "weights.ckpt", tmp_path / "merged.safetensors"

    def convert(source: Path, target: Path, lora: str) -> None:
        loading.convert(
            source, target, config, "float32", prepare_changes=lambda shapes: merging.prepare([lora], shapes, config)
        )

    convert(weights, target, f"{first}:0.5")
    model = merged(workshop, f"{first}:0.5")
    assert np.array_equal(load_file(target)[UNET_WEIGHT], values(model, UNET_WEIGHT))
    assert files.from_json(json.loads(containers.read(target).metadata["merged_loras"])) == [
        files.LoraRecord("a", 0.5, files.short_hash(first))
    ]
    with pytest.raises(
        UserError, match=r"has the LoRA a:0\.5 \(\w{12}\) merged already; leave it out of --lora_weight"
    ):
        merged(workshop, first, weights=target)
    with pytest.raises(UserError, match="merged already"):
        convert(target, tmp_path / "again.ckpt", str(first))
    convert(target, tmp_path / "both.ckpt", str(second))
    metadata = containers.read(tmp_path / "both.ckpt").metadata
    assert [record.name for record in files.from_json(json.loads(metadata["merged_loras"]))] == ["a", "b"]
    with caplog.at_level(logging.INFO, "gm"):
        merged(workshop, second, weights=target)
    assert "has LoRAs merged already: a:0.5" in caplog.text
