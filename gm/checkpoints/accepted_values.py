"""Values of the fields of diffusers' configs that fit the model that we build.

Sizes show in the shapes of tensors, too; heads, activations, epsilons and scales show only in configs. Fields are those
of diffusers' UNet2DConditionModel, AutoencoderKL and schedulers, and of transformers' CLIPTextConfig.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from gm.checkpoints.diffusers_format import TEXT_ENCODERS
from gm.checkpoints.statements import Accepted
from gm.config.model import ModelConfig, ScheduleConfig
from gm.config.networks import TextEncoderConfig, UNetConfig, VAEConfig

# Schedulers of models that predict on DDPM's noise schedule; their other settings are those of a sampler.
_SCHEDULERS = re.compile(
    r"(DDIM|DDIMInverse|DDIMParallel|DDPM|DDPMParallel|DEISMultistep|DPMSolver(Multistep|MultistepInverse|Singlestep|SDE)"
    r"|Euler(Ancestral)?Discrete|HeunDiscrete|KDPM2(Ancestral)?Discrete|LCM|LMSDiscrete|PNDM|SASolver|TCD|UniPCMultistep)"
    r"Scheduler"
)
# Fields that change the UNet if they are true, and if they are anything but null.
_UNET_SWITCHES = (
    "center_input_sample",
    "class_embeddings_concat",
    "dual_cross_attention",
    "mid_block_only_cross_attention",
    "only_cross_attention",
    "resnet_skip_time_act",
)
_UNET_EXTENSIONS = (
    "class_embed_type",
    "cross_attention_norm",
    "encoder_hid_dim",
    "encoder_hid_dim_type",
    "num_class_embeds",
    "quantization_config",
    "reverse_transformer_layers_per_block",
    "time_cond_proj_dim",
    "time_embedding_act_fn",
    "time_embedding_dim",
    "timestep_post_act",
)


def accepted_values(config: ModelConfig) -> dict[str, Accepted]:
    """Return the values that fit a model of `config`, by the names of statements."""
    text_encoders = {
        TEXT_ENCODERS[name]: _accepted_text_encoder(encoder, "quick_gelu" if name == "clip_l" else "gelu")
        for name, encoder in config.text_encoders.items()
    }
    if "clip_g" in config.text_encoders:
        text_encoders[TEXT_ENCODERS["clip_g"]]["projection_dim"] = (config.text_encoders["clip_g"].width,)
    networks = {
        "scheduler": accepted_scheduler(config.schedule),
        "unet": _accepted_unet(config.unet, config.size_embedding_dim),
        "vae": _accepted_vae(config.vae),
        **text_encoders,
    }
    return {f"{network}.{field}": values for network, fields in networks.items() for field, values in fields.items()}


def accepted_scheduler(schedule: ScheduleConfig) -> dict[str, Accepted]:
    """Return the values of a scheduler's config that fit; its other fields are settings of a sampler."""
    return {
        "_class_name": lambda name: bool(_SCHEDULERS.fullmatch(name)),
        "prediction_type": (schedule.prediction,),
        "rescale_betas_zero_snr": (schedule.rescale_betas_zero_snr,),
        "num_train_timesteps": (schedule.timesteps,),
        "beta_start": (schedule.beta_start,),
        "beta_end": (schedule.beta_end,),
        "beta_schedule": ("scaled_linear",),
        "trained_betas": (),
        "timestep_type": ("discrete",),
        "use_flow_sigmas": (False,),
        "shift": (1,),
        "snr_shift_scale": (1,),
    }


def _accepted_unet(unet: UNetConfig, size_embedding_dim: int) -> dict[str, Accepted]:
    channels = [mult * unet.model_channels for mult in unet.channel_mult]
    heads = [unet.heads(width) for width in channels]
    return {
        "_class_name": ("UNet2DConditionModel",),
        "in_channels": (unet.in_channels,),
        "out_channels": (unet.out_channels,),
        "block_out_channels": (channels,),
        "layers_per_block": _at_levels([unet.num_res_blocks] * len(channels), [1] * len(channels)),
        "transformer_layers_per_block": _at_levels(unet.transformer_depth, unet.transformer_depth),
        # In spite of its name the number of heads, unless num_attention_heads has it.
        "attention_head_dim": _at_levels(heads, unet.transformer_depth),
        "num_attention_heads": _at_levels(heads, unet.transformer_depth),
        "cross_attention_dim": (unet.context_dim, [unet.context_dim] * len(channels)),
        "projection_class_embeddings_input_dim": (unet.adm_in_channels,) if unet.adm_in_channels else (),
        "addition_embed_type": ("text_time",) if unet.adm_in_channels else (),
        "addition_time_embed_dim": (size_embedding_dim,) if unet.adm_in_channels else (),
        "norm_num_groups": (unet.norm_num_groups,),
        "norm_eps": (1e-5,),
        "act_fn": ("silu", "swish"),
        "flip_sin_to_cos": (True,),
        "use_linear_projection": (True, False),  # 1×1 convolutions of the same values
        "resnet_time_scale_shift": ("default",),
        "time_embedding_type": ("positional",),
        "attention_type": ("default",),
        "freq_shift": (0,),
        **dict.fromkeys(("downsample_padding", "mid_block_scale_factor", "resnet_out_scale_factor"), (1,)),
        **dict.fromkeys(("conv_in_kernel", "conv_out_kernel"), (3,)),
        **dict.fromkeys(_UNET_SWITCHES, (False,)),
        **dict.fromkeys(_UNET_EXTENSIONS, ()),
    }


def _accepted_vae(vae: VAEConfig) -> dict[str, Accepted]:
    channels = [mult * vae.channels for mult in vae.channel_mult]
    return {
        "_class_name": ("AutoencoderKL",),
        "in_channels": (3,),
        "out_channels": (3,),
        "scaling_factor": (vae.scale_factor,),
        "latent_channels": (vae.latent_channels,),
        "block_out_channels": (channels,),
        "layers_per_block": (vae.num_res_blocks,),
        "norm_num_groups": (vae.norm_num_groups,),
        "act_fn": ("silu", "swish"),
        "shift_factor": (0,),
        "latents_mean": lambda values: not any(values),
        "latents_std": lambda values: all(value == 1 for value in values),
        "quantization_config": (),
        **dict.fromkeys(("use_quant_conv", "use_post_quant_conv", "mid_block_add_attention"), (True,)),
    }


def _accepted_text_encoder(encoder: TextEncoderConfig, activation: str) -> dict[str, Accepted]:
    return {
        "hidden_act": (activation,),
        "hidden_size": (encoder.width,),
        "intermediate_size": (4 * encoder.width,),
        "layer_norm_eps": (1e-5,),
        "max_position_embeddings": (encoder.context_length,),
        "num_attention_heads": (encoder.heads,),
        "num_hidden_layers": (encoder.layers,),
        "projection_dim": lambda width: True,  # but for SDXL's text encoder 2 no projection is used
        "quantization_config": (),
        "vocab_size": lambda size: encoder.vocab_size <= size <= 1.1 * encoder.vocab_size,  # with added tokens
    }


def _at_levels(values: Sequence[int], depth: Sequence[int]) -> Callable[[Any], bool]:
    """Return whether a number for all levels, or a list with one per level, is `values` where `depth` is not 0."""

    def accepts(entry: Any) -> bool:
        each = [entry] * len(values) if isinstance(entry, int) else list(entry)
        return len(each) == len(values) and all(
            one == value for one, value, blocks in zip(each, values, depth, strict=True) if blocks
        )

    return accepts
