"""LoRA files that are not for the model, or damaged: refused by name."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from gm.checkpoints.key_mapping import parameter_shapes
from gm.errors import UserError
from gm.lora import merging
from tests.lora.conftest import UNET_LAYER, WriteLora, factors
from tests.lora.merged import UNET_WEIGHT, load_shape, merged, values
from tests.project import Workshop


def refusal(workshop: Workshop, *loras: str | Path) -> str:
    config = workshop.config().model
    with pytest.raises(UserError) as caught:
        merging.prepare(list(map(str, loras)), parameter_shapes(workshop.model), config)
    return str(caught.value)


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
