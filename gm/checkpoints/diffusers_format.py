"""A diffusers SDXL folder, seen as the published single file.

The folder's names are those of diffusers' UNet2DConditionModel and AutoencoderKL and of transformers' CLIPTextModel
and CLIPTextModelWithProjection; the block arithmetic follows from the model's config. What no rule knows keeps its
name under its network's prefix, where the strict check then finds it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from gm.checkpoints import containers, diffusers_names, openclip
from gm.checkpoints.detect import BASE, REFINER
from gm.checkpoints.key_mapping import UNUSED
from gm.checkpoints.lazy_tensor import LazyTensor, reshaped
from gm.config.model import ModelConfig
from gm.errors import UserError

Tensors = dict[str, LazyTensor]

_STEMS = ("diffusion_pytorch_model", "model")
_VARIANTS = ("", ".fp16")  # the most exact first


def read(folder: Path, config: ModelConfig) -> Tensors:
    """Return the tensors of `folder` by their published names.

    Raises UserError for a part or file that is not there, and for a folder of a model of the other kind.
    """
    encoder_2 = openclip.PREFIXES[config.kind]
    parts: dict[str, Callable[[Tensors], Tensors]] = {
        "unet": lambda tensors: _renamed(tensors, "model.diffusion_model.", diffusers_names.unet(config.unet)),
        "text_encoder": _clip,
        "text_encoder_2": lambda tensors: openclip.from_transformers(tensors, encoder_2),
        "vae": lambda tensors: _autoencoder(tensors, config),
    }
    if config.is_refiner:
        del parts["text_encoder"]
    _check_parts(folder, list(parts))
    published: Tensors = {}
    for part, translate in parts.items():
        tensors = _read_part(folder / part)
        published |= translate({name: tensor for name, tensor in tensors.items() if not name.endswith(UNUSED)})
    return published


def _check_parts(folder: Path, wanted: list[str]) -> None:
    """Raise UserError if a `wanted` network is not there, or if the base's text encoder is and is not wanted."""
    missing = [part for part in wanted if not (folder / part).is_dir()]
    if missing == ["text_encoder"]:
        raise UserError(f"{folder} has no text_encoder: it is incomplete, or the {REFINER}")
    if missing:
        raise UserError(f"{folder} is no diffusers SDXL folder: it has no {', '.join(missing)}")
    if "text_encoder" not in wanted and (folder / "text_encoder").is_dir():
        raise UserError(f"{folder} has a text_encoder: it is the {BASE}; use the SDXL refiner")


def _read_part(folder: Path) -> Tensors:
    """Return the tensors of one network, which may lie in one file or in several that an index names."""
    for variant in _VARIANTS:
        for stem in _STEMS:
            whole = folder / f"{stem}{variant}.safetensors"
            if whole.is_file():
                return containers.read(whole).tensors
            # diffusers and transformers put the variant at different places of the index's name.
            for index in sorted(folder.glob(f"{stem}*safetensors*.json")):
                if (".fp16" in index.name) == bool(variant):
                    return _read_shards(index)
    raise UserError(
        f"{folder} holds no diffusion_pytorch_model.safetensors or model.safetensors, nor one of their variants; "
        "save the model with safe_serialization=True"
    )


def _read_shards(index: Path) -> Tensors:
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = sorted({Path(file).name for file in places.values()})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{index} is no index of safetensors files; download or copy it again") from error
    tensors: Tensors = {}
    for file in files:
        tensors |= containers.read(index.parent / file).tensors
    return tensors


def _renamed(tensors: Tensors, prefix: str, rename: Callable[[str], str]) -> Tensors:
    return {prefix + rename(name): tensor for name, tensor in tensors.items()}


def _clip(tensors: Tensors) -> Tensors:
    """Put text encoder 1 under its prefix; since version 5 transformers leaves `text_model.` out."""
    return _renamed(tensors, "conditioner.embedders.0.transformer.text_model.", lambda n: n.removeprefix("text_model."))


def _autoencoder(tensors: Tensors, config: ModelConfig) -> Tensors:
    published = _renamed(tensors, "first_stage_model.", diffusers_names.vae(config.vae))
    for name, tensor in published.items():
        if re.search(r"\.attn_1\.\w+\.weight$", name) and len(tensor.shape) == 2:
            published[name] = reshaped(tensor, (*tensor.shape, 1, 1))  # a linear map there, a 1×1 convolution here
    return published
