"""Diffusers folder of an SDXL model, read as the published single file.

Its keys are those of diffusers' UNet2DConditionModel and AutoencoderKL and of transformers' CLIPTextModel and
CLIPTextModelWithProjection; the config of the model determines how blocks are numbered. A tensor that no rule matches
keeps its key under the prefix of its network, where the strict check then reports it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection
from pathlib import Path

from gm.checkpoints import containers, diffusers_key_mapping
from gm.checkpoints.detect import BASE, REFINER
from gm.checkpoints.diffusers_key_mapping import TEXT_ENCODER_2_PREFIXES, KeyMapping
from gm.checkpoints.key_mapping import IGNORED_SUFFIXES
from gm.checkpoints.lazy_tensor import LazyTensor, reshaped
from gm.config.model import ModelConfig
from gm.errors import UserError

Tensors = dict[str, LazyTensor]

STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
_SUFFIXES = (".safetensors", ".bin")
# The most precise first; `non_ema` are the weights before averaging, from which trainings continue.
_VARIANTS = ("", ".fp32", ".fp16", ".bf16", ".ema", ".non_ema")


def networks(config: ModelConfig) -> list[str]:
    """Return the subfolders of the networks of a model of `config`."""
    return ["unet", *([] if config.is_refiner else ["text_encoder"]), "text_encoder_2", "vae"]


def read(folder: Path, config: ModelConfig, without: Collection[str] = ()) -> Tensors:
    """Return the tensors of `folder` by their published keys, those of the networks `without` excepted.

    Raises UserError for a network or file that is missing, and for the folder of a model of the other kind.
    """
    converters: dict[str, Callable[[Tensors], Tensors]] = {
        "unet": lambda tensors: convert_unet(tensors, config),
        "text_encoder": _convert_text_encoder,
        "text_encoder_2": lambda tensors: diffusers_key_mapping.convert_text_encoder_2(
            tensors, TEXT_ENCODER_2_PREFIXES[config.kind]
        ),
        "vae": lambda tensors: convert_vae(tensors, config),
    }
    names = [network for network in networks(config) if network not in without]
    _check_networks(folder, names)
    published: Tensors = {}
    for network in names:
        convert = converters[network]
        tensors = read_network(folder / network)
        published |= convert({key: tensor for key, tensor in tensors.items() if not key.endswith(IGNORED_SUFFIXES)})
    return published


def _check_networks(folder: Path, networks: list[str]) -> None:
    """Raise UserError if one of `networks` is missing, or if the base's text encoder is there in place of a refiner."""
    missing = [network for network in networks if not (folder / network).is_dir()]
    if missing == ["text_encoder"]:
        raise UserError(f"{folder} has no text_encoder: it is incomplete, or the {REFINER}")
    if missing in (["unet"], ["vae"]):
        raise UserError(f"{folder} has no {missing[0]}: it is incomplete; --{missing[0]} gives one of another place")
    if missing:
        raise UserError(f"{folder} is not a diffusers SDXL folder: it has no {', '.join(missing)}")
    if "text_encoder" not in networks and (folder / "text_encoder").is_dir():
        raise UserError(f"{folder} has a text_encoder: it is the {BASE}; use the SDXL refiner")


def read_network(folder: Path) -> Tensors:
    """Return the tensors of one network, from one file or from the shards of an index; UserError without them."""
    for variant in _variants(folder):
        for suffix in _SUFFIXES:
            for stem in STEMS:
                single = folder / f"{stem}{variant}{suffix}"
                if single.is_file():
                    return containers.read_weights(single).tensors
                # diffusers and transformers put the variant at different places of the index's name.
                for index in sorted(folder.glob(f"{stem}*{suffix}*.json")):
                    if _variant_of_index(index.name) == variant:
                        return _read_shards(index)
    raise UserError(
        f"{folder} has no diffusion_pytorch_model.safetensors or model.safetensors, nor one of their variants; "
        "save the model with safe_serialization=True"
    )


def _variants(folder: Path) -> list[str]:
    """Return the variants in the order in which they are taken: those of other names after the known ones."""
    names = (re.fullmatch(rf"({'|'.join(STEMS)})(\.\w+)(\.safetensors|\.bin)", path.name) for path in folder.iterdir())
    return [*_VARIANTS, *sorted({name[2] for name in names if name} - {*_VARIANTS})]


def _variant_of_index(name: str) -> str:
    return next((variant for variant in _VARIANTS[1:] if f"{variant}." in name), "")


def _read_shards(index: Path) -> Tensors:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted({Path(shard).name for shard in weight_map.values()})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{index} is not an index of weight files; download or copy it again") from error
    tensors: Tensors = {}
    for shard in shards:
        tensors |= containers.read_weights(index.parent / shard).tensors
    return tensors


def _rename(tensors: Tensors, prefix: str, rename: KeyMapping) -> Tensors:
    return {prefix + rename(key): tensor for key, tensor in tensors.items()}


def convert_unet(tensors: Tensors, config: ModelConfig) -> Tensors:
    """Return the UNet by its published keys; keys that are published ones already stay."""
    return _rename(tensors, "model.diffusion_model.", diffusers_key_mapping.unet_key_mapping(config.unet))


def _convert_text_encoder(tensors: Tensors) -> Tensors:
    """Return text encoder 1; since version 5 transformers leaves `text_model.` out."""
    prefix = "conditioner.embedders.0.transformer.text_model."
    return _rename(tensors, prefix, lambda key: key.removeprefix("text_model."))


def convert_vae(tensors: Tensors, config: ModelConfig) -> Tensors:
    """Return the VAE by its published keys; keys that are published ones already stay."""
    published = _rename(tensors, "first_stage_model.", diffusers_key_mapping.vae_key_mapping(config.vae))
    for key, tensor in published.items():
        if re.search(r"\.attn_1\.\w+\.weight$", key) and len(tensor.shape) == 2:
            published[key] = reshaped(tensor, (*tensor.shape, 1, 1))  # linear in diffusers, a 1×1 convolution here
    return published
