"""Names of layers in the files of every program, for SDXL at full size and for models with one text encoder."""

from __future__ import annotations

import pytest

from gm.checkpoints.key_mapping import parameter_shapes
from gm.config.model import ModelConfig
from gm.config.networks import UNetConfig
from gm.lora.targets import Target, targets
from gm.models import stable_diffusion

UNET, TEXT_1, TEXT_2 = (
    "model.diffusion_model.",
    "conditioner.embedders.0.transformer.",
    "conditioner.embedders.1.model.",
)


@pytest.fixture(scope="module")
def sdxl_names(device: None) -> dict[str, Target]:
    config = ModelConfig()
    return targets(parameter_shapes(stable_diffusion.build(config)), config)


BLOCK = "transformer_blocks.3"
# Names in published files of SDXL.
SDXL = {
    "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q": "input_blocks.4.1.transformer_blocks.0.attn1.to_q",
    "lora_unet_middle_block_1_transformer_blocks_9_attn2_to_v": "middle_block.1.transformer_blocks.9.attn2.to_v",
    "lora_unet_output_blocks_5_1_transformer_blocks_1_ff_net_2": "output_blocks.5.1.transformer_blocks.1.ff.net.2",
    "lora_unet_output_blocks_2_2_conv": "output_blocks.2.2.conv",
    "lora_unet_input_blocks_3_0_op": "input_blocks.3.0.op",
    "lora_unet_input_blocks_4_0_skip_connection": "input_blocks.4.0.skip_connection",
    "lora_unet_down_blocks_2_attentions_1_proj_out": "input_blocks.8.1.proj_out",
    "lora_unet_up_blocks_0_upsamplers_0_conv": "output_blocks.2.2.conv",
    "lora_unet_mid_block_resnets_1_time_emb_proj": "middle_block.2.emb_layers.1",
    "lora_unet_add_embedding_linear_2": "label_emb.0.2",
    "lycoris_up_blocks_1_resnets_0_conv_shortcut": "output_blocks.3.0.skip_connection",
    "unet.down_blocks.1.attentions.0.proj_in": "input_blocks.4.1.proj_in",
    f"unet.mid_block.attentions.0.{BLOCK}.attn1.processor.to_out": f"middle_block.1.{BLOCK}.attn1.to_out.0",
    f"up_blocks.0.attentions.2.{BLOCK}.attn1.processor.to_k": f"output_blocks.2.1.{BLOCK}.attn1.to_k",
    "base_model.model.conv_in": "input_blocks.0.0",
    "diffusion_model.time_embed.0": "time_embed.0",
}


@pytest.mark.parametrize("name", SDXL)
def test_layers_of_sdxls_unet(sdxl_names: dict[str, Target], name: str) -> None:
    assert sdxl_names[name].parameter == f"{UNET}{SDXL[name]}.weight"


def test_layers_of_sdxls_text_encoders(sdxl_names: dict[str, Target]) -> None:
    layer = "text_model.encoder.layers.11.self_attn.out_proj"
    for name in (f"lora_te1_{layer.replace('.', '_')}", f"text_encoder.{layer}", f"{TEXT_1}{layer}"):
        assert sdxl_names[name] == Target(f"{TEXT_1}{layer}.weight", (768, 768))
    fused = f"{TEXT_2}transformer.resblocks.31.attn.in_proj_weight"
    value = "text_model_encoder_layers_31_self_attn_v_proj"
    assert sdxl_names[f"lora_te2_{value}"] == Target(fused, (1280, 1280), first_row=2560)
    assert sdxl_names["text_encoder_2.text_model.encoder.layers.31.self_attn.k_proj"].first_row == 1280
    fc1 = sdxl_names["lora_te2_text_model_encoder_layers_0_mlp_fc1"]
    assert fc1 == Target(f"{TEXT_2}transformer.resblocks.0.mlp.c_fc.weight", (5120, 1280))
    assert sdxl_names["lora_te2_text_projection"] == Target(f"{TEXT_2}text_projection", (1280, 1280), transposed=True)
    assert not any(name.startswith("lora_te_") for name in sdxl_names)


def test_every_matrix_and_convolution_of_the_unet_has_both_names(sdxl_names: dict[str, Target]) -> None:
    by_prefix = {
        prefix: {target.parameter for name, target in sdxl_names.items() if name.startswith(prefix)}
        for prefix in ("unet.", "diffusion_model.", "lora_unet_")
    }
    assert by_prefix["unet."] == by_prefix["diffusion_model."] == by_prefix["lora_unet_"]
    transformer = [name for name in by_prefix["unet."] if "transformer_blocks" in name or ".proj_" in name]
    assert len(transformer) == 722  # as many as kohya's trainer logs


def test_models_with_one_text_encoder_need_no_table_of_their_own() -> None:
    """Stable Diffusion 1 and 2 by their published names: projections that are 1×1 convolutions, one text encoder."""
    unet = UNetConfig(channel_mult=(1, 2, 4, 4), transformer_depth=(1, 1, 1, 0))
    proj_in = f"{UNET}input_blocks.1.1.proj_in.weight"
    to_v = f"{UNET}output_blocks.5.1.transformer_blocks.0.attn2.to_v.weight"
    query = "cond_stage_model.transformer.text_model.encoder.layers.3.self_attn.q_proj.weight"
    shapes: dict[str, tuple[int, ...]] = {proj_in: (320, 320, 1, 1), to_v: (1280, 768), query: (768, 768)}
    names = targets(shapes, ModelConfig(unet=unet))
    assert names["lora_unet_down_blocks_0_attentions_0_proj_in"] == Target(proj_in, (320, 320, 1, 1))
    assert names["lora_unet_up_blocks_1_attentions_2_transformer_blocks_0_attn2_to_v"].parameter == to_v
    for prefix in (
        "lora_te_text_model_encoder_layers_3_self_attn_",
        "text_encoder.text_model.encoder.layers.3.self_attn.",
    ):
        assert names[f"{prefix}q_proj"].parameter == query
    fused = "cond_stage_model.model.transformer.resblocks.3.attn.in_proj_weight"
    names = targets({fused: (3072, 1024)}, ModelConfig(unet=unet))
    assert names["lora_te_text_model_encoder_layers_3_self_attn_k_proj"] == Target(fused, (1024, 1024), first_row=1024)
