"""Probable kind of a file whose modules are not those of the model, for error messages."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from gm.checkpoints.detect import detect_other_model
from gm.checkpoints.lazy_tensor import LazyTensor
from gm.lora.reading import LoraContent

# The first pattern that a module's name begins with decides.
_MODELS = (
    (r"(lora_unet_|lycoris_|.*\.)?(double|single)_blocks[._]|.*single_transformer_blocks", "a LoRA for Flux"),
    (r".*joint_blocks[._]|.*attn[._]add_[qkv]_proj", "a LoRA for Stable Diffusion 3 or another MM-DiT"),
    (r"lora_prior_", "a LoRA for Stable Cascade"),
    (r"lllite_", "a ControlNet-LLLite"),
    (r"(diffusion_model|transformer|lora_transformer|lora_unet|lycoris)[._](layers|blocks|transformer_blocks)[._]",
     "a LoRA for a diffusion transformer (Wan, Qwen-Image, PixArt, …)"),
    (r"(lora_te3_|text_encoder_3\.)", "a LoRA for Stable Diffusion 3"),
)  # fmt: skip
_CROSS_ATTENTION = re.compile(r".*attn2[._](processor\.)?to_[kv]")
_TEXT_ATTENTION = re.compile(r"(lora_te_|text_encoder\.).*self_attn[._](to_)?[qkv](_proj)?")
# By the width of the context that cross-attention reads, and by the width of the only text encoder.
_BY_CONTEXT = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 1280: "the SDXL refiner", 2048: "SDXL"}
_BY_TEXT_WIDTH = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2"}
_BY_METADATA = (("sdxl", "SDXL"), ("sd_v1", "Stable Diffusion 1"), ("sd_v2", "Stable Diffusion 2"),
                ("stable-diffusion-xl", "SDXL"), ("stable-diffusion-v1", "Stable Diffusion 1"),
                ("stable-diffusion-v2", "Stable Diffusion 2"))  # fmt: skip


def detect_without_modules(keys: Sequence[str]) -> str:
    """Return the probable kind of a file with these `keys`, none of them a LoRA's; "" if unknown."""
    if any(key.startswith(("model.diffusion_model.", "conditioner.", "cond_stage_model.")) for key in keys):
        return "a whole model, which goes to --weight"
    if any(re.match(r"(down|up|input|output)_blocks\.", key) for key in keys):
        return "a UNet, which goes to --unet"
    if any("control" in key for key in keys):
        return "a Control-LoRA or ControlNet, which is not supported"
    return detect_other_model(keys, "base").format(use="give a LoRA") if keys else ""


def detect_base_model(content: LoraContent, context_dim: int, unmatched: Collection[str]) -> str:
    """Return what `content` seems to be that a model with this context does not have; "" if nothing is recognized.

    Widths decide before metadata, which a merge of LoRAs may have from any of them.
    """
    for pattern, description in _MODELS:
        if any(re.match(pattern, name) for name in unmatched):
            return description
    widths = {module.name: _inputs(module.parts) for module in content.modules}
    for name, width in widths.items():
        if _CROSS_ATTENTION.fullmatch(name) and width != context_dim and width in _BY_CONTEXT:
            return f"a LoRA for {_BY_CONTEXT[width]}"
    if any(name.startswith("lora_te1_") for name in unmatched):
        return "a LoRA for a model with two text encoders, such as SDXL"
    for name in unmatched:
        if _TEXT_ATTENTION.fullmatch(name) and widths.get(name) in _BY_TEXT_WIDTH:
            return f"a LoRA for {_BY_TEXT_WIDTH[widths[name]]}"
    statements = " ".join(content.metadata.get(key, "") for key in ("ss_base_model_version", "modelspec.architecture"))
    return next((f"a LoRA for {model}" for start, model in _BY_METADATA if start in statements), "")


def _inputs(parts: Mapping[str, LazyTensor]) -> int:
    """Return the number of inputs of a LoRA's module; 0 if another method does not show it."""
    down = parts.get("down")
    return down.shape[1] if down is not None and len(down.shape) > 1 else 0
