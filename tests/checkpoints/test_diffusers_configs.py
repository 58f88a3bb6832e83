"""gm/checkpoints/diffusers_configs.py: what the configs of a diffusers folder say of the model."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gm import config as configuration
from gm.checkpoints import accepted_values, diffusers_configs, diffusers_format, statements
from gm.config.model import ModelConfig
from gm.errors import UserError
from tests.checkpoints.published_configs import CONFIGS, SCHEDULER, UNET

BASE = ModelConfig()
V_PREDICTION = "model.schedule.prediction v_prediction"
REFINER_YAML = Path(__file__).resolve().parents[2] / "configs" / "sampling" / "sd_xl_refiner.yaml"
Check = Callable[..., None]


@pytest.fixture
def check(tmp_path: Path) -> Check:
    """Return a function that checks the published configs with the fields of one changed."""

    def check_(name: str = "", model: ModelConfig = BASE, configs: dict[str, Any] = CONFIGS, **fields: Any) -> None:
        for path, content in configs.items():
            (tmp_path / path).parent.mkdir(exist_ok=True)
            (tmp_path / path).write_text(json.dumps(content | (fields if path == name else {})))
        read = diffusers_configs.read(tmp_path, diffusers_format.networks(model))
        statements.check(read, accepted_values.accepted_values(model), "folder")

    return check_


def test_the_published_configs_fit_and_leave_nothing_unused(check: Check, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    check()
    assert caplog.messages == []


def test_the_published_refiner_fits(check: Check) -> None:
    unet = UNET | {
        "attention_head_dim": [6, 12, 24, 24],
        "block_out_channels": [384, 768, 1536, 1536],
        "cross_attention_dim": 1280,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "projection_class_embeddings_input_dim": 2560,
        "transformer_layers_per_block": 4,
    }
    pipeline = {"_class_name": "StableDiffusionXLImg2ImgPipeline", "requires_aesthetics_score": True}
    configs = {name: content for name, content in CONFIGS.items() if not name.startswith("text_encoder/")}
    check(
        model=configuration.load(REFINER_YAML).model,
        configs=configs | {"unet/config.json": unet, "model_index.json": pipeline},
    )


@pytest.mark.parametrize(
    ("place", "field", "value", "message"),
    [
        (
            "scheduler",
            "prediction_type",
            "v_prediction",
            "v_prediction instead of epsilon; .* model.schedule.prediction v_prediction",
        ),
        (
            "scheduler",
            "prediction_type",
            "sample",
            "prediction_type sample instead of epsilon; such models are not supported; use one",
        ),
        ("scheduler", "prediction_type", ["v"], "prediction_type"),
        (
            "scheduler",
            "rescale_betas_zero_snr",
            True,
            "rescale_betas_zero_snr true instead of false; .*leave out --config",
        ),
        ("scheduler", "beta_schedule", "linear", "beta_schedule linear instead of scaled_linear"),
        ("scheduler", "beta_end", 0.014, "beta_end 0.014 instead of 0.012; .*--config with model.schedule.beta_end"),
        ("scheduler", "num_train_timesteps", 4, "num_train_timesteps 4 instead of 1000"),
        ("scheduler", "trained_betas", [0.1, 0.2], r"trained_betas \[0.1, 0.2\] instead of none"),
        ("scheduler", "shift", 3.0, "shift 3.0 instead of 1"),
        ("scheduler", "timestep_type", "continuous", "timestep_type continuous instead of discrete"),
        ("scheduler", "use_flow_sigmas", True, "use_flow_sigmas"),
        ("scheduler", "_class_name", "EDMDPMSolverMultistepScheduler", "_class_name EDMDPMSolverMultistepScheduler"),
        ("scheduler", "_class_name", "FlowMatchEulerDiscreteScheduler", "such models are not supported; use one"),
        ("scheduler", "_class_name", 7, "_class_name 7"),
        (
            "vae",
            "scaling_factor",
            0.18215,
            "scaling_factor 0.18215 instead of 0.13025; .*model.vae.scale_factor 0.18215",
        ),
        ("vae", "shift_factor", 0.1159, "shift_factor 0.1159 instead of 0"),
        ("vae", "latents_mean", [-1.6, 1.1, 0.5, 0.3], "latents_mean"),
        ("vae", "latents_std", [8.0, 5.0, 5.2, 6.0], "latents_std"),
        ("vae", "_class_name", "AutoencoderTiny", "_class_name AutoencoderTiny instead of AutoencoderKL"),
        ("vae", "use_quant_conv", False, "use_quant_conv false instead of true"),
        ("unet", "in_channels", 9, "in_channels 9 instead of 4; inpainting models have 9 input channels"),
        ("unet", "in_channels", 8, "in_channels 8 instead of 4; .*instruct-pix2pix models 8"),
        ("unet", "time_cond_proj_dim", 256, "time_cond_proj_dim 256 instead of none; an LCM that embeds"),
        ("unet", "attention_head_dim", 8, "attention_head_dim 8"),
        ("unet", "attention_head_dim", [5, 20, 10], "attention_head_dim"),
        ("unet", "transformer_layers_per_block", [1, 2, 4], "transformer_layers_per_block"),
        ("unet", "act_fn", "gelu", "act_fn gelu instead of silu"),
        ("unet", "norm_num_groups", 16, "norm_num_groups 16 instead of 32"),
        ("unet", "center_input_sample", True, "center_input_sample true instead of false"),
        ("unet", "flip_sin_to_cos", False, "flip_sin_to_cos false instead of true"),
        ("unet", "encoder_hid_dim_type", "ip_image_proj", "encoder_hid_dim_type ip_image_proj instead of none"),
        ("unet", "quantization_config", {"load_in_8bit": True}, "quantized models are not supported"),
        ("text_encoder", "hidden_act", "gelu", "hidden_act gelu instead of quick_gelu"),
        ("text_encoder", "num_attention_heads", 8, "num_attention_heads 8 instead of 12"),
        ("text_encoder", "num_hidden_layers", 11, "num_hidden_layers 11 instead of 12"),
        ("text_encoder", "vocab_size", 250002, "vocab_size 250002"),
        ("text_encoder", "vocab_size", 30000, "vocab_size 30000"),
        ("text_encoder_2", "hidden_act", "quick_gelu", "hidden_act quick_gelu instead of gelu"),
        ("text_encoder_2", "projection_dim", 768, "projection_dim 768 instead of 1280"),
    ],
)
def test_each_statement_is_compared_with_the_model(
    check: Check, place: str, field: str, value: object, message: str
) -> None:
    name = "scheduler/scheduler_config.json" if place == "scheduler" else f"{place}/config.json"
    with pytest.raises(UserError, match=message) as caught:
        check(name, **{field: value})
    assert f"{name} says {field} " in str(caught.value)


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("unet/config.json", "use_linear_projection", False),
        ("unet/config.json", "layers_per_block", [2, 2, 2]),
        ("unet/config.json", "attention_head_dim", [7, 10, 20]),  # the first level has no attention
        ("unet/config.json", "upcast_attention", True),
        ("unet/config.json", "update_after_step", 0),
        ("vae/config.json", "force_upcast", False),
        ("vae/config.json", "latents_mean", [0, 0, 0, 0]),
        ("text_encoder/config.json", "projection_dim", 512),
        ("text_encoder/config.json", "vocab_size", 49411),  # three added tokens
        ("scheduler/scheduler_config.json", "rescale_betas_zero_snr", False),
        ("scheduler/scheduler_config.json", "steps_offset", 0),
    ],
)
def test_what_changes_no_result_is_accepted(
    check: Check, caplog: pytest.LogCaptureFixture, name: str, field: str, value: object
) -> None:
    caplog.set_level(logging.INFO)
    check(name, **{field: value})
    assert caplog.messages == []


@pytest.mark.parametrize(
    "scheduler",
    ["DDIM", "DPMSolverMultistep", "EulerAncestralDiscrete", "KDPM2Discrete", "LCM", "PNDM", "UniPCMultistep"],
)
def test_another_sampler_is_said_not_to_be_used(check: Check, caplog: pytest.LogCaptureFixture, scheduler: str) -> None:
    caplog.set_level(logging.INFO)
    check("scheduler/scheduler_config.json", _class_name=f"{scheduler}Scheduler", timestep_spacing="trailing")
    (message,) = caplog.messages
    assert message.startswith("folder: not used: scheduler/scheduler_config.json says sampler")
    assert f'_class_name "{scheduler}Scheduler"' in message
    assert "--sampler" in message


def test_what_is_unknown_or_of_the_pipeline_is_logged(
    check: Check, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    check("unet/config.json", new_feature="x")
    check("model_index.json", force_zeros_for_empty_prompt=False)
    check("tokenizer_2/tokenizer_config.json", pad_token="<|endoftext|>")
    check(configs=CONFIGS | {"tokenizer/added_tokens.json": {"<cat-toy>": 49408, "<cat-toy>_1": 49409}})
    (tmp_path / "tokenizer" / "added_tokens.json").unlink()
    tokens = [{"id": 49406, "content": "<|startoftext|>"}, {"id": 49408, "content": "<cat-toy>"}]
    check(configs=CONFIGS | {"tokenizer_2/tokenizer.json": {"added_tokens": tokens}})
    assert [message.partition("not used: ")[2] for message in caplog.messages] == [
        "unet/config.json says new_feature x",
        "model_index.json says force_zeros_for_empty_prompt false",
        "tokenizer_2/tokenizer_config.json says pad_token <|endoftext|>",
        "tokenizer says added_tokens <cat-toy> <cat-toy>_1",
        "tokenizer_2 says added_tokens <cat-toy>",
    ]


def test_what_is_not_the_networks_own_is_named_first_and_the_rest_is_counted(check: Check) -> None:
    with pytest.raises(UserError) as caught:
        check(
            "unet/config.json",
            configs=CONFIGS | {"scheduler/scheduler_config.json": SCHEDULER | {"prediction_type": "v_prediction"}},
            act_fn="gelu",
            in_channels=9,
            norm_num_groups=3,
            cross_attention_dim=7,
            out_channels=8,
        )
    text = str(caught.value)
    assert "describes: scheduler/scheduler_config.json says prediction_type v_prediction" in text
    assert text.endswith("and 2 more; if that is right, leave out --config, or give one with " + V_PREDICTION)


@pytest.mark.parametrize("content", ["{", "[1]", "[" * 10**5])
def test_a_damaged_config_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"vae/config\.json is not a config in JSON; download or copy it again"):
        diffusers_configs.read(tmp_path, ["unet", "vae"])
