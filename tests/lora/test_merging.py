"""LoRAs merged into weights: values, precision, strengths, and files that are not for the model."""

from __future__ import annotations

import json
import logging
import re
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
from gm.models.stable_diffusion import StableDiffusion
from gm.runtime.backend import DType
from tests.lora.conftest import TEXT_LAYER, UNET_LAYER, WriteLora, delta, factors
from tests.project import Workshop

UNET_WEIGHT = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
QKV = "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight"


def merged(
    workshop: Workshop, *loras: str | Path, dtype: DType = ms.float32, weights: Path | None = None
) -> StableDiffusion:
    config = workshop.config().model
    model = stable_diffusion.build(config, dtype)
    changes = merging.prepare(list(map(str, loras)), parameter_shapes(model), config)
    loading.load_weights(model, weights or workshop.folder / "weights.ckpt", config, changes=changes)
    return model


def values(model: StableDiffusion, name: str) -> np.ndarray:
    return next(p for p in model.get_parameters() if p.name == name).asnumpy()


def refusal(workshop: Workshop, *loras: str | Path) -> str:
    config = workshop.config().model
    with pytest.raises(UserError) as caught:
        merging.prepare(list(map(str, loras)), parameter_shapes(workshop.model), config)
    return str(caught.value)


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


def load_shape(workshop: Workshop, module: str) -> dict[str, np.ndarray]:
    return factors(module, values(workshop.model, UNET_WEIGHT).shape)


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


OTHER_MODELS: dict[str, tuple[dict[str, tuple[int, ...]], str]] = {
    "SD1": ({"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k": (16, 768)}, "Stable Diffusion 1"),
    "SD2": ({"unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v": (16, 1024)}, "Stable Diffusion 2"),
    "SD1 text": ({"lora_te_text_model_encoder_layers_0_self_attn_q_proj": (768, 768)}, "Stable Diffusion 1"),
    "SDXL": ({"lora_unet_input_blocks_4_1_transformer_blocks_9_attn2_to_k": (640, 2048)}, "SDXL"),
    "Flux": ({"lora_unet_double_blocks_0_img_attn_proj": (3072, 3072)}, "Flux"),
    "Flux of diffusers": ({"transformer.single_transformer_blocks.0.attn.to_q": (3072, 3072)}, "Flux"),
    "SD3": ({"transformer.transformer_blocks.0.attn.add_k_proj": (1536, 1536)}, "Stable Diffusion 3"),
    "Cascade": ({"lora_prior_unet_down_blocks_0_1_attention_attn_to_q": (64, 64)}, "Stable Cascade"),
    "Wan": ({"diffusion_model.blocks.0.cross_attn.k": (64, 64)}, "a diffusion transformer"),
    "LLLite": ({"lllite_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q": (64, 64)}, "a ControlNet-LLLite"),
}


@pytest.mark.parametrize("name", OTHER_MODELS)
def test_a_lora_for_another_model_is_named(workshop: Workshop, tmp_path: Path, name: str) -> None:
    layers, model = OTHER_MODELS[name]
    tensors: dict[str, np.ndarray] = {}
    for layer, shape in layers.items():
        tensors |= factors(layer, shape)
    save_file(tensors, tmp_path / "other.safetensors")
    message = refusal(workshop, tmp_path / "other.safetensors")
    assert "does not fit the model: it seems to be" in message
    assert model in message
    assert next(iter(layers)) in message


def test_names_that_match_nothing_are_refused_unless_the_strength_is_0(
    workshop: Workshop, write_lora: WriteLora, caplog: pytest.LogCaptureFixture
) -> None:
    more = factors("lora_unet_input_blocks_99_0_in_layers_2", (4, 4)) | {"note": np.zeros(1, np.float32)}
    path = write_lora(more=more, metadata={"ss_base_model_version": "sd_v1"})
    message = refusal(workshop, f"{path}:-0.1")
    assert "it seems to be a LoRA for Stable Diffusion 1" in message  # by the metadata, for want of anything else
    assert "2 of 4 names match no layer (lora_unet_input_blocks_99_0_in_layers_2, note)" in message
    with caplog.at_level(logging.INFO, "gm"):
        merged(workshop, f"{path}:0")
    assert "strength 0, not used; 2 of its names match no layer" in caplog.text


def test_layers_of_another_shape_are_refused(workshop: Workshop, tmp_path: Path) -> None:
    outputs, inputs = values(workshop.model, UNET_WEIGHT).shape
    save_file(factors(UNET_LAYER, (outputs, inputs + 1)), tmp_path / "a.safetensors")
    assert f"a change of {[outputs, inputs + 1]}, the model's layer has {[outputs, inputs]}" in refusal(
        workshop, tmp_path / "a.safetensors"
    )
    tensors = load_shape(workshop, UNET_LAYER)
    for key, shape, problem in [
        ("lora_up.weight", (outputs, 3), "factors that do not fit each other"),
        ("alpha", (2,), "alpha of [2], which should be one number"),
        ("dora_scale", (7, 1), f"dora_scale of [7, 1], the model's layer has {[outputs, inputs]}"),
    ]:
        save_file(tensors | {f"{UNET_LAYER}.{key}": np.ones(shape, np.float32)}, tmp_path / "b.safetensors")
        assert problem in refusal(workshop, tmp_path / "b.safetensors")


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        (("lora_down.weight", "alpha"), "has alpha, down alone, which is no complete LoRA, LoHa or LoKr"),
        (("hada_w1_a", "hada_w1_b"), "has hada_w1_a, hada_w1_b alone"),
        (("on_input",), "holds IA³"),
        (("a1.weight", "a2.weight", "b1.weight", "b2.weight"), "holds GLoRA"),
        (("oft_blocks",), "holds OFT or BOFT"),
        (("diff", "diff_b"), "holds whole weights in place of factors"),
        (("w_norm", "b_norm"), "holds changes of normalisations"),
        (("lora_down.weight", "lora_up.weight", "lora_B.bias"), "holds changes of biases"),
    ],
)
def test_other_methods_and_incomplete_modules_are_named(
    workshop: Workshop, tmp_path: Path, keys: tuple[str, ...], problem: str
) -> None:
    tensors = {f"{UNET_LAYER}.{key}": np.ones((2, 2), np.float32) for key in keys}
    save_file(tensors, tmp_path / "a.safetensors")
    message = refusal(workshop, tmp_path / "a.safetensors")
    assert problem in message
    assert UNET_LAYER in message


@pytest.mark.parametrize(
    ("keys", "seems"),
    [
        (["model.diffusion_model.input_blocks.0.0.weight"], "a whole model, which goes to --weight"),
        (["down_blocks.0.resnets.0.conv1.weight"], "a UNet, which goes to --unet"),
        (["clip_l", "clip_g"], "an embedding file, which goes to --textual_inversion_weight"),
        (["lora_controlnet"], "a Control-LoRA or ControlNet"),
        (["x"], "is not a LoRA"),
    ],
)
def test_a_file_without_a_lora_is_named(workshop: Workshop, tmp_path: Path, keys: list[str], seems: str) -> None:
    save_file({key: np.ones((2, 2), np.float32) for key in keys}, tmp_path / "a.safetensors")
    assert seems in refusal(workshop, tmp_path / "a.safetensors")


def test_files_of_cloneofsimo_are_named(workshop: Workshop, tmp_path: Path) -> None:
    save_file({"unet:0:up": np.ones((2, 2), np.float32)}, tmp_path / "a.safetensors")
    assert "factors without the names of their layers (cloneofsimo/lora)" in refusal(
        workshop, tmp_path / "a.safetensors"
    )


def test_two_adapters_in_one_file_are_refused(workshop: Workshop, tmp_path: Path) -> None:
    keys = [f"unet.conv_in.lora_A.{adapter}.weight" for adapter in ("default", "style")]
    save_file({key: np.ones((2, 2), np.float32) for key in keys}, tmp_path / "a.safetensors")
    assert "holds two LoRAs for unet.conv_in" in refusal(workshop, tmp_path / "a.safetensors")


def test_damaged_metadata_of_peft_are_named(workshop: Workshop, write_lora: WriteLora) -> None:
    path = write_lora(metadata={"lora_adapter_metadata": "{"})
    assert "PEFT's config is damaged" in refusal(workshop, path)


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


def test_values_that_are_not_finite_are_named(workshop: Workshop, tmp_path: Path) -> None:
    tensors = load_shape(workshop, UNET_LAYER)
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=re.escape(f"{UNET_WEIGHT} is no longer finite; lower the strength")):
        merged(workshop, f"{tmp_path}/a.safetensors:1e39")
    tensors[f"{UNET_LAYER}.lora_up.weight"][0, 0] = np.nan
    save_file(tensors, tmp_path / "b.safetensors")
    with pytest.raises(UserError, match=f"up of {UNET_LAYER} holds NaN or infinite values; take the LoRA from another"):
        merged(workshop, tmp_path / "b.safetensors")
    save_file({key: np.ones_like(array, np.int8) for key, array in tensors.items()}, tmp_path / "c.safetensors")
    assert "holds int8 values; give a file of floats" in refusal(workshop, tmp_path / "c.safetensors")


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
