"""The modules of a model that a LoRA can change, by every name that LoRA files have for them.

Names are made from those of the model, never taken apart: underscores in `to_out_0` would make that ambiguous. Sources:
kohya-ss/sd-scripts, networks/lora.py (`lora_unet_`, `lora_te1_`; the published path for SDXL, diffusers' for Stable
Diffusion 1 and 2); diffusers, loaders/lora_conversion_utils.py and utils/state_dict_utils.py (`unet.`,
`text_encoder.`, `.processor.`); ComfyUI, comfy/lora.py (`diffusion_model.`, `lycoris_`); mindone, the
model's own names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from gm.checkpoints.diffusers_key_mapping import unet_key_mapping
from gm.checkpoints.key_mapping import ParameterShapes
from gm.config.model import ModelConfig
from gm.config.networks import UNetConfig

_UNET = "model.diffusion_model."
# Of SDXL (`conditioner.embedders.0.`) and of Stable Diffusion 1 and 2 (`cond_stage_model.`); CLIP and OpenCLIP.
_TEXT_ENCODER = re.compile(r"(?P<prefix>(?:conditioner\.embedders\.\d+|cond_stage_model)\.(?:transformer|model)\.)")
_SINGLE_LAYERS = [
    f"{embedding}.linear_{number}" for embedding in ("time_embedding", "add_embedding") for number in (1, 2)
]
_SINGLE_LAYERS += ["conv_in", "conv_out", "mid_block.attentions.0"]
_RESNET_LAYERS = ("conv1", "conv2", "time_emb_proj", "conv_shortcut")
_OPENCLIP_LAYERS = {"attn.out_proj": "self_attn.out_proj", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
_OPENCLIP_LAYER = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)\.weight")
_OPENCLIP_QKV = re.compile(r"transformer\.resblocks\.(\d+)\.attn\.in_proj_weight")


@dataclass(frozen=True)
class Target:
    """The weight of a module: a parameter by MindSpore's name, or some of its rows.

    shape: [outputs, inputs] or [outputs, inputs, k, k] of the module; first_row: where its outputs begin in the
    parameter; transposed: the parameter is W of x @ W
    """

    parameter: str
    shape: tuple[int, ...]
    first_row: int = 0
    transposed: bool = False

    def view(self, values: np.ndarray) -> np.ndarray:
        """Return the part of the parameter's `values` that is this weight, as a view."""
        if self.transposed:
            return values.T
        return values[self.first_row : self.first_row + self.shape[0]]


def targets(shapes: ParameterShapes, config: ModelConfig) -> dict[str, Target]:
    """Return the modules of the model with these parameters by all of their names in LoRA files."""
    by_name: dict[str, Target] = {}
    stems = _diffusers_stems(config.unet)
    for name, shape in shapes.items():
        if name.startswith(_UNET) and name.endswith(".weight") and len(shape) > 1:
            path = name.removeprefix(_UNET).removesuffix(".weight")
            by_name |= dict.fromkeys(_unet_names(path, _diffusers_path(path, stems)), Target(name, shape))
    prefixes = list(dict.fromkeys(match["prefix"] for match in map(_TEXT_ENCODER.match, shapes) if match))
    for number, prefix in enumerate(prefixes):
        parameters = {name.removeprefix(prefix): name for name in shapes if name.startswith(prefix)}
        for key, name in parameters.items():
            for path, target in _text_modules(key, name, shapes[name]):
                by_name |= dict.fromkeys(_text_names(path, number, len(prefixes)), target)
                if target.parameter.endswith(".weight"):
                    by_name[name.removesuffix(".weight")] = target  # of mindone
    return by_name


def _unet_names(published: str, diffusers: str) -> Iterator[str]:
    for path in (published, diffusers):
        yield from (prefix + path.replace(".", "_") for prefix in ("lora_unet_", "lycoris_"))
    yield from (prefix + published for prefix in ("diffusion_model.", _UNET))
    # PEFT's `save_pretrained`; diffusers with and (cog-sdxl) without prefix; their attention processors before 0.20.
    yield f"base_model.model.{diffusers}"
    processor = diffusers.replace(".to_", ".processor.to_").removesuffix(".0")
    yield from (prefix + path for prefix in ("unet.", "") for path in (diffusers, processor))


def _text_names(path: str, number: int, count: int) -> Iterator[str]:
    """Yield the names of the module with transformers' `path` in text encoder `number` of `count`."""
    kohya = [f"lora_te{number + 1}_"] if count > 1 else ["lora_te_", "lora_te1_"]
    yield from (prefix + path.replace(".", "_") for prefix in kohya)
    prefix = "text_encoder." if number == 0 else f"text_encoder_{number + 1}."
    yield prefix + path
    yield prefix + path.removeprefix("text_model.")  # transformers 5
    yield prefix + re.sub(r"self_attn\.(\w+)_proj", r"self_attn.to_\1", path)  # diffusers before 0.18
    if count == 1:
        yield f"base_model.model.{path}"


def _text_modules(key: str, name: str, shape: tuple[int, ...]) -> Iterator[tuple[str, Target]]:
    """Yield the modules of a text encoder's parameter by transformers' path; `key` is its name in the encoder."""
    if key.startswith("text_model.") and key.endswith(".weight") and len(shape) > 1:
        yield key.removesuffix(".weight"), Target(name, shape)
    elif match := _OPENCLIP_QKV.fullmatch(key):
        width = shape[1]
        for number, letter in enumerate("qkv"):
            path = f"text_model.encoder.layers.{match[1]}.self_attn.{letter}_proj"
            yield path, Target(name, (width, width), first_row=number * width)
    elif (match := _OPENCLIP_LAYER.fullmatch(key)) and match[2] in _OPENCLIP_LAYERS:
        yield f"text_model.encoder.layers.{match[1]}.{_OPENCLIP_LAYERS[match[2]]}", Target(name, shape)
    elif key == "text_projection":
        yield key, Target(name, shape[::-1], transposed=True)


def _diffusers_stems(config: UNetConfig) -> dict[str, str]:
    """Return the beginnings of diffusers' module paths by the published ones, both with a dot at the end."""
    rename = unet_key_mapping(config)
    return {rename(stem): stem for stem in _block_stems(config)}


def _block_stems(config: UNetConfig) -> Iterator[str]:
    """Yield diffusers' module paths of all blocks that the levels may have; some of them the model lacks."""
    yield from (f"{layer}." for layer in _SINGLE_LAYERS)
    resnets = [f"mid_block.resnets.{number}" for number in range(2)]
    for level in range(len(config.channel_mult)):
        yield f"down_blocks.{level}.downsamplers.0.conv."
        yield f"up_blocks.{level}.upsamplers.0.conv."
        for side, count in (("down", config.num_res_blocks), ("up", config.num_res_blocks + 1)):
            for number in range(count):
                yield f"{side}_blocks.{level}.attentions.{number}."
                resnets.append(f"{side}_blocks.{level}.resnets.{number}")
    for resnet in resnets:
        yield from (f"{resnet}.{layer}." for layer in _RESNET_LAYERS)


def _diffusers_path(path: str, stems: dict[str, str]) -> str:
    """Return diffusers' path of the module with the published `path`; the same if it has no other."""
    parts: Sequence[str] = path.split(".")
    for length in range(len(parts), 0, -1):
        stem = stems.get(".".join(parts[:length]) + ".")
        if stem:
            return (stem + ".".join(parts[length:])).removesuffix(".")
    return path
