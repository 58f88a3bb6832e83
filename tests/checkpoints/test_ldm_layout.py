"""gm/checkpoints/ldm_layout.py: single files of Stable Diffusion 1 and 2 in the layouts of all programs."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from gm.checkpoints import containers, key_mapping, ldm_layout, loading, variants
from gm.checkpoints.lazy_tensor import LazyTensor, in_memory
from gm.config.model import ModelConfig
from gm.config.networks import TextEncoderConfig, UNetConfig, VAEConfig
from gm.models import stable_diffusion
from tests.checkpoints.files import lazy
from tests.reference.case import Case

Weights = dict[str, np.ndarray]

UNET = "model.diffusion_model."
CLIP = "cond_stage_model.transformer.text_model."
OPENCLIP = "cond_stage_model.model."
# Of the sorted lines "name<TAB>sizes,joined,by,commas\n" of v1-5-pruned-emaonly and v2-1_768-ema-pruned.
SHA256 = {
    "sd1": "05e1606239cfde7d5fb3964d63aac1cc05bacbecfa759e1be9c42f18d09f860c",
    "sd2": "5c7818de3335a79f6503dac8aa567a44efe020f10e895b0c466efaf6fe619a50",
}
BUFFERS = (
    *("betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod"),
    *("log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod"),
    *("posterior_variance", "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2"),
)


def full_size(family: str) -> ModelConfig:
    unet = {"channel_mult": (1, 2, 4, 4), "transformer_depth": (1, 1, 1, 0), "transformer_depth_middle": 1}
    kind, encoder = {
        "sd1": ({"num_heads": 8, "use_linear_in_transformer": False, "context_dim": 768}, TextEncoderConfig()),
        "sd2": ({"context_dim": 1024}, TextEncoderConfig(width=1024, layers=23, heads=16)),
    }[family]
    return ModelConfig(
        family=family,
        unet=UNetConfig(**unet, **kind, adm_in_channels=0),
        text_encoder_1=encoder,
        vae=VAEConfig(scale_factor=0.18215),
    )


def last_layer(config: ModelConfig, weights: Weights) -> Weights:
    """Return what a single file of SD 2 has beside the layers that run: the last one, projection and scale."""
    (encoder,) = config.text_encoders.values()
    block = f"{OPENCLIP}transformer.resblocks."
    of_first = {name: array for name, array in weights.items() if name.startswith(f"{block}0.")}
    layer = {
        name.replace(f"{block}0.", f"{block}{encoder.layers}."): np.zeros_like(array)
        for name, array in of_first.items()
    }
    projection = np.full((encoder.width, encoder.width), np.nan, np.float32)  # of no effect, whatever it holds
    return layer | {f"{OPENCLIP}text_projection": projection, f"{OPENCLIP}logit_scale": np.float32(4.6)}


def extras(config: ModelConfig, weights: Weights) -> Weights:
    """Return the tensors that a published single file has beside the weights."""
    if config.family == "sd2":
        return last_layer(config, weights)
    return {f"{CLIP}embeddings.position_ids": np.arange(config.context_length)[None]}


@pytest.mark.parametrize(("family", "count"), [("sd1", 1143), ("sd2", 1240)])
def test_the_full_size_file_has_the_published_keys_and_shapes(family: str, count: int) -> None:
    """In both directions: what is published is read, and nothing else is wanted."""
    config = full_size(family)
    shapes = key_mapping.parameter_shapes(stable_diffusion.build(config))
    empty = {key_mapping.published_name(name): np.empty(shape, np.float16) for name, shape in shapes.items()}
    file = empty | extras(config, empty) | {name: np.empty(1000) for name in BUFFERS}
    lines = sorted(f"{name}\t{','.join(map(str, array.shape))}\n" for name, array in file.items())
    assert len(lines) == count
    assert hashlib.sha256("".join(lines).encode()).hexdigest() == SHA256[family]
    tensors, _ = variants.to_published_layout(
        {n: LazyTensor(a.shape, "float16", a.copy) for n, a in file.items()}, shapes
    )
    assert {name: tensor.shape for name, tensor in tensors.items()} == shapes


def rename(weights: Weights, *rules: tuple[str, str]) -> Weights:
    renamed = {}
    for name, array in weights.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        renamed[name] = array
    return renamed


def mindone(weights: Weights) -> Weights:
    """Return `weights` with mindone's names, query, key and value fused for both families."""
    unet = rename(
        {name: array for name, array in weights.items() if name.startswith(UNET)},
        (r"((?:^|\.)(?:norm\d?|out\.0|in_layers\.0|out_layers\.0))\.weight$", r"\1.gamma"),
        (r"((?:^|\.)(?:norm\d?|out\.0|in_layers\.0|out_layers\.0))\.bias$", r"\1.beta"),
        (r"\.(in|out)_layers\.0\.", r".\1_layers_norm."),
        (r"\.in_layers\.2\.", ".in_layers_conv.conv."),
        (r"\.out_layers\.3\.", ".out_layers_conv.conv."),
        (r"(input_blocks\.0\.0|\.op|skip_connection|\.\d\.conv|out\.2)\.(weight|bias)$", r"\1.conv.\2"),
    )
    text = {name: array for name, array in weights.items() if name.startswith("cond_stage_model.")}
    for name in [name for name in text if ".self_attn.q_proj." in name]:
        parts = [text.pop(name.replace("q_proj", f"{part}_proj")) for part in "qkv"]
        text[re.sub(r"q_proj\.(\w+)", r"in_proj_\1", name)] = np.concatenate(parts)
    text = rename(
        text,
        (rf"^({re.escape(CLIP)}|{re.escape(OPENCLIP)})", "cond_stage_model.transformer."),
        (r"(embeddings\.)?token_embedding\.weight", "embedding_table"),
        (r"embeddings\.position_embedding\.weight", "positional_embedding"),
        (r"final_layer_norm", "ln_final"),
        (r"encoder\.layers\.|transformer\.resblocks\.", "transformer_layer.resblocks."),
        (r"layer_norm(\d)", r"ln_\1"),
        (r"\.(self_attn|attn)\.(in|out)_proj", r".attn.attn.\2_proj"),
        (r"in_proj_(weight|bias)", r"in_proj.\1"),
        (r"\.mlp\.(fc1|c_fc)\.", ".c_fc."),
        (r"\.mlp\.(fc2|c_proj)\.", ".c_proj."),
        (r"(ln_\w+)\.weight", r"\1.gamma"),
        (r"(ln_\w+)\.bias", r"\1.beta"),
    )
    vae = {name: array for name, array in weights.items() if name.startswith("first_stage_model.")}
    return unet | text | vae


def other_projections(weights: Weights) -> Weights:
    """Return `weights` with linear projections as 1×1 convolutions, and the other way round."""
    return {
        name: array.reshape((*array.shape, 1, 1) if array.ndim == 2 else array.shape[:2])
        if re.search(r"\.proj_(in|out)\.weight$", name) and name.startswith(UNET)
        else array
        for name, array in weights.items()
    }


def averages(weights: Weights) -> Weights:
    """Return latent diffusion's moving averages of the UNet, other values than the weights."""
    names = {
        name: "model_ema." + name.removeprefix("model.").replace(".", "") for name in weights if name.startswith(UNET)
    }
    ema = {averaged: weights[name] + np.float32(1) for name, averaged in names.items()}
    return ema | {"model_ema.decay": np.float32(0.9999), "model_ema.num_updates": np.array(875000)}


LAYOUTS: dict[str, Callable[[Weights, ModelConfig], Weights]] = {
    "published": lambda weights, config: weights | extras(config, weights),
    "buffers": lambda weights, config: weights | {name: np.ones(1000, np.float32) for name in BUFFERS},
    "more buffers": lambda weights, config: (
        weights
        | {name: np.ones(1000, np.float32) for name in ("logvar", "lvlb_weights")}
        | {"scale_factor": np.float32(0.18215)}
    ),
    "averages": lambda weights, config: weights | averages(weights),
    "projections": lambda weights, config: other_projections(weights),
    "sgm's prefix": lambda weights, config: rename(weights, (r"^cond_stage_model\.", "conditioner.embedders.0.")),
    "without text_model.": lambda weights, config: rename(weights, (r"transformer\.text_model\.", "transformer.")),
    "position_ids of merged models": lambda weights, config: (
        weights | {f"{CLIP}embeddings.position_ids": np.full((1, 77), 0.99, np.float16)}
    ),
    "ComfyUI": lambda weights, config: (
        weights
        | {"cond_stage_model.logit_scale": np.float32(4.6)}
        | {"cond_stage_model.transformer.text_projection.weight": np.ones((4, 4), np.float32)}
    ),
    "ControlNet": lambda weights, config: weights | {"control_model.input_blocks.0.0.weight": np.ones(3)},
    "textual inversion": lambda weights, config: weights | {"embedding_manager.string_to_param.x": np.ones(3)},
    "mask": lambda weights, config: (
        weights | ({f"{OPENCLIP}attn_mask": np.ones((7, 7), np.float32)} if config.family == "sd2" else {})
    ),
    "mindone": lambda weights, config: mindone(weights),
    "mindone's averages": lambda weights, config: (
        mindone(weights) | {f"ema.{name}": array + np.float32(1) for name, array in mindone(weights).items()}
    ),
    "a compiled module": lambda weights, config: {f"_orig_mod.{name}": array for name, array in weights.items()},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_weights(sd_case: Case, tmp_path: Path, layout: str) -> None:
    tensors = LAYOUTS[layout](sd_case.weights, sd_case.config)
    suffix = ".ckpt" if layout.startswith("mindone") else ".safetensors"
    containers.write(tmp_path / f"a{suffix}", lazy({name: np.asarray(array) for name, array in tensors.items()}))
    loading.convert(tmp_path / f"a{suffix}", tmp_path / "b.safetensors", sd_case.config, "float32")
    converted = load_file(tmp_path / "b.safetensors")
    assert set(converted) == set(sd_case.weights)
    for name, array in sd_case.weights.items():
        assert converted[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        ("averages", "moving averages of the weights ("),
        ("buffers", "tables of the noise schedule (12 tensors, alphas_cumprod …)"),
        ("ControlNet", "a ControlNet (control_model.input_blocks.0.0.weight)"),
        ("textual inversion", "the embeddings of a textual inversion (embedding_manager.string_to_param.x)"),
        (
            "ComfyUI",
            "projections of the text encoder that no image depends on (2 tensors, cond_stage_model.logit_scale",
        ),
    ],
)
def test_what_is_left_out_is_said(
    sd_case: Case, tmp_path: Path, caplog: pytest.LogCaptureFixture, layout: str, said: str
) -> None:
    caplog.set_level(logging.INFO)
    tensors = LAYOUTS[layout](sd_case.weights, sd_case.config)
    containers.write(tmp_path / "a.safetensors", lazy({name: np.asarray(array) for name, array in tensors.items()}))
    loading.convert(tmp_path / "a.safetensors", tmp_path / "b.ckpt", sd_case.config, "float32")
    (message,) = caplog.messages
    assert f"a.safetensors: not used: {said}" in message


def test_the_last_layer_of_stable_diffusion_2_is_left_out_and_the_one_after_it_is_not(
    cases: Callable[[str], Case], caplog: pytest.LogCaptureFixture
) -> None:
    case = cases("like-sd2")
    shapes = key_mapping.parameter_shapes(case.model)
    tensors = {name: in_memory(np.zeros(shape)) for name, shape in shapes.items()}
    last = {name: in_memory(np.asarray(array)) for name, array in last_layer(case.config, case.weights).items()}
    found, notes = variants.to_published_layout(tensors | last, shapes)
    assert set(found) == set(shapes)
    layers = case.config.text_encoder_1.layers
    first = f"{OPENCLIP}transformer.resblocks.{layers}.attn.in_proj_bias"
    assert any(
        note.startswith("the text encoder's last layer, which no image depends on (12 tensors, ") for note in notes
    )
    one_more = first.replace(f".{layers}.", f".{layers + 1}.")
    assert one_more in variants.to_published_layout(tensors | {one_more: last[first]}, shapes)[0]


def test_names_of_sdxl_stay(smallest: Case) -> None:
    """What is left out of Stable Diffusion 1 and 2 is unknown in SDXL, and reported there."""
    shapes = key_mapping.parameter_shapes(smallest.model)
    tensors = {name: in_memory(np.zeros(shape)) for name, shape in shapes.items()}
    tensors |= {name: in_memory(np.zeros(1)) for name in ("control_model.x", "conditioner.embedders.0.model.x")}
    assert ldm_layout.rename_text_encoder(tensors, shapes) == tensors
    assert ldm_layout.split_unused(tensors, shapes) == (tensors, {})
