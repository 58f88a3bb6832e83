"""Diffusers folder of a model, read as the published single file.

Its keys are those of diffusers' UNet2DConditionModel and AutoencoderKL and of transformers' CLIPTextModel and
CLIPTextModelWithProjection; Stable Diffusion 1 and 2 have one text encoder, of 2 only the 23 layers that run. The
config of the model determines how blocks are numbered. A tensor that no rule matches keeps its key under the prefix of
its network, where the strict check then reports it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

from gm.checkpoints import containers, detect, diffusers_key_mapping
from gm.checkpoints.detect import BASE, REFINER, check_family
from gm.checkpoints.diffusers_key_mapping import KeyMapping
from gm.checkpoints.key_mapping import IGNORED_SUFFIXES
from gm.checkpoints.lazy_tensor import LazyTensor, reshaped
from gm.config.model import ModelConfig
from gm.errors import UserError

Tensors = dict[str, LazyTensor]

STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
_SUFFIXES = (".safetensors", ".bin")
# The most precise first; `non_ema` are the weights before averaging, from which trainings continue.
_VARIANTS = ("", ".fp32", ".fp16", ".bf16", ".ema", ".non_ema")


# Subfolders of the text encoders by name.
TEXT_ENCODERS = {"clip_l": "text_encoder", "clip_g": "text_encoder_2", "clip_h": "text_encoder"}


def networks(config: ModelConfig) -> list[str]:
    """Return the subfolders of the networks of a model of `config`."""
    return ["unet", *(TEXT_ENCODERS[name] for name in config.text_encoders), "vae"]


def read(folder: Path, config: ModelConfig, without: Collection[str] = ()) -> Tensors:
    """Return the tensors of `folder` by their published keys, those of the networks `without` excepted.

    Raises UserError for a network or file that is missing, and for the folder of a model of another family or kind.
    """
    check_family(detect_family(folder), config, folder)
    converters: dict[str, Callable[[Tensors], Tensors]] = {
        "unet": lambda tensors: convert_unet(tensors, config),
        "vae": lambda tensors: convert_vae(tensors, config),
    }
    for index, name in enumerate(config.text_encoders):
        prefix = config.traits.text_encoder_prefix.format(index)
        converters[TEXT_ENCODERS[name]] = partial(_TEXT_CONVERTERS[name], prefix=prefix)
    names = [network for network in networks(config) if network not in without]
    _check_networks(folder, names, config)
    published: Tensors = {}
    for network in names:
        convert = converters[network]
        tensors = read_network(folder / network)
        published |= convert({key: tensor for key, tensor in tensors.items() if not key.endswith(IGNORED_SUFFIXES)})
    return published


def detect_family(folder: Path) -> str:
    """Return the kind of model in `folder`, as `detect.detect_family`; "" for a folder of anything else.

    The configs distinguish Stable Diffusion 1 and 2: the width of the context, or the activation of the text
    encoder, which OpenAI's CLIP has as quick GELU and OpenCLIP as GELU; without configs by the tensors.
    """
    if not (folder / "unet").is_dir():
        return ""
    if (folder / "text_encoder_2").is_dir():
        return "base" if (folder / "text_encoder").is_dir() else "refiner"
    unet, text_encoder = (_read_config(folder / network) for network in ("unet", "text_encoder"))
    if unet.get("addition_embed_type") == "text_time":  # SDXL, of which a text encoder is missing
        return "base"
    width = unet.get("cross_attention_dim", text_encoder.get("hidden_size"))
    known = detect.KIND_OF_CONTEXT.get(width if isinstance(width, int) else 0, "")
    known = known or {"quick_gelu": "sd1", "gelu": "sd2"}.get(str(text_encoder.get("hidden_act")), "")
    if known or unet:
        return known
    return detect.family_of_unet({key: tensor.shape for key, tensor in read_network(folder / "unet").items()})


def _read_config(folder: Path) -> dict[str, Any]:
    """Return the config of a network, {} if there is none; `diffusers_configs` reports one that cannot be read."""
    try:
        value = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _check_networks(folder: Path, networks: list[str], config: ModelConfig) -> None:
    """Raise UserError if one of `networks` is missing, or if the base's text encoder is there in place of a refiner."""
    missing = [network for network in networks if not (folder / network).is_dir()]
    if missing == ["text_encoder"] and config.family == "sdxl":
        raise UserError(f"{folder} has no text_encoder: it is incomplete, or the {REFINER}")
    if missing in (["unet"], ["vae"]):
        raise UserError(f"{folder} has no {missing[0]}: it is incomplete; --{missing[0]} gives one of another place")
    if missing:
        raise UserError(f"{folder} is not a diffusers {config.traits.title} folder: it has no {', '.join(missing)}")
    if config.is_refiner and (folder / "text_encoder").is_dir():
        raise UserError(f"{folder} has a text_encoder: it is the {BASE}; use the SDXL refiner")


def read_network(folder: Path) -> Tensors:
    """Return the tensors of one network, from one file or from the shards of an index; UserError without them."""
    weights = find_weights(folder)
    if weights is not None:
        return _read_shards(weights) if weights.suffix == ".json" else containers.read_weights(weights).tensors
    raise UserError(
        f"{folder} has no diffusion_pytorch_model.safetensors or model.safetensors, nor one of their variants; "
        "save the model with safe_serialization=True"
    )


def find_weights(folder: Path) -> Path | None:
    """Return the file with the weights of one network, or the index of its shards; None without them."""
    for variant in _variants(folder):
        for suffix in _SUFFIXES:
            for stem in STEMS:
                single = folder / f"{stem}{variant}{suffix}"
                if single.is_file():
                    return single
                # diffusers and transformers put the variant at different places of the index's name.
                for index in sorted(folder.glob(f"{stem}*{suffix}*.json")):
                    if _variant_of_index(index.name) == variant:
                        return index
    return None


def _variants(folder: Path) -> list[str]:
    """Return the variants in the order in which they are taken: those of other names after the known ones."""
    names = (re.fullmatch(rf"({'|'.join(STEMS)})(\.\w+)(\.safetensors|\.bin)", path.name) for path in folder.iterdir())
    return [*_VARIANTS, *sorted({name[2] for name in names if name} - {*_VARIANTS})]


def _variant_of_index(name: str) -> str:
    return next((variant for variant in _VARIANTS[1:] if f"{variant}." in name), "")


def _read_shards(index: Path) -> Tensors:
    tensors: Tensors = {}
    for shard in shards(index):
        tensors |= containers.read_weights(shard).tensors
    return tensors


def shards(index: Path) -> list[Path]:
    """Return the files that an index of weights lists; UserError for another file."""
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return [index.parent / name for name in sorted({Path(shard).name for shard in weight_map.values()})]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{index} is not an index of weight files; download or copy it again") from error


def _rename(tensors: Tensors, prefix: str, rename: KeyMapping) -> Tensors:
    return {prefix + rename(key): tensor for key, tensor in tensors.items()}


def convert_unet(tensors: Tensors, config: ModelConfig) -> Tensors:
    """Return the UNet by its published keys; keys that are published ones already stay."""
    return _rename(tensors, "model.diffusion_model.", diffusers_key_mapping.unet_key_mapping(config.unet))


def _convert_clip(tensors: Tensors, prefix: str) -> Tensors:
    """Return OpenAI's CLIP by its published keys; since version 5 transformers leaves `text_model.` out."""
    return _rename(tensors, f"{prefix}transformer.text_model.", lambda key: key.removeprefix("text_model."))


def _convert_openclip(tensors: Tensors, prefix: str) -> Tensors:
    """Return OpenCLIP by its published keys."""
    return diffusers_key_mapping.convert_openclip(tensors, f"{prefix}model.")


def _convert_openclip_with_projection(tensors: Tensors, prefix: str) -> Tensors:
    """Return OpenCLIP with the projection of its pooled output by its published keys."""
    return diffusers_key_mapping.convert_text_encoder_2(tensors, f"{prefix}model.")


_TEXT_CONVERTERS = {
    "clip_l": _convert_clip,
    "clip_g": _convert_openclip_with_projection,
    "clip_h": _convert_openclip,
}


def convert_vae(tensors: Tensors, config: ModelConfig) -> Tensors:
    """Return the VAE by its published keys; keys that are published ones already stay."""
    published = _rename(tensors, "first_stage_model.", diffusers_key_mapping.vae_key_mapping(config.vae))
    for key, tensor in published.items():
        if re.search(r"\.attn_1\.\w+\.weight$", key) and len(tensor.shape) == 2:
            published[key] = reshaped(tensor, (*tensor.shape, 1, 1))  # linear in diffusers, a 1×1 convolution here
    return published
