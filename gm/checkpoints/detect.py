"""Detection of files of another kind, by their first bytes or by the keys of their tensors, for error messages."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping

_USE_SAFETENSORS = "use the .safetensors file of the same model"
_FILE_SIGNATURES = (
    (rb"PK\x03\x04", f"a PyTorch file or another zip archive; {_USE_SAFETENSORS}"),
    (rb"\x80[\x02-\x05]", f"a Python pickle, as PyTorch writes; {_USE_SAFETENSORS}"),
    (rb"\s*<(!doctype|html|head|\?xml)", "a web page, as a failed download leaves; download the file itself again"),
    (rb"version https://git-lfs", "a git-lfs pointer; fetch the file itself with git lfs pull"),
    (rb"\x1f\x8b", "a gzip archive; unpack it first"),
    (rb"GGUF", f"a GGUF file; {_USE_SAFETENSORS}"),
    (rb"\x89HDF", f"an HDF5 file; {_USE_SAFETENSORS}"),
    (rb"\x93NUMPY", "a NumPy array; give a .safetensors or .ckpt file"),
    (rb"\x89PNG|\xff\xd8\xff|RIFF....WEBP", "an image; give a .safetensors or .ckpt file"),
    (rb"\{", "JSON text; give a .safetensors or .ckpt file"),
)

BASE = "SDXL base model, which goes to --weight and is converted with the --config of a base model"
REFINER = (
    "SDXL refiner, which goes to --pipeline_weight and is converted with --config configs/sampling/sd_xl_refiner.yaml"
)
_EMBEDDING = "an embedding file, which goes to --textual_inversion_weight"
# The first pattern that matches the beginning of a key decides; {use} is replaced by what to use instead.
_KEY_PATTERNS = (
    (r"lora_|.*\.lora_|.*\.lora\.|.*\.(hada|lokr)_", "a LoRA, which goes to --lora_weight beside a model; {use}"),
    (r"clip_[lg]$|emb_params$|text_encoders_[01]$|emb2?$|string_to_|<", _EMBEDDING),
    (r"cond_stage_model\.model\.", "Stable Diffusion 2; {use}"),
    (r"cond_stage_model\.", "Stable Diffusion 1; {use}"),
    (r"control_model\.|controlnet_|input_hint_block\.", "a ControlNet; {use}"),
    (r"(.*\.)?(double|joint)_blocks\.", "Flux or Stable Diffusion 3; {use}"),
    (
        r"(down|up)_blocks\.|mid_block\.|text_model\.|(en|de)coder\.",
        "one network of a model; give the single file or the whole diffusers folder",
    ),
)
# By the kind of model wanted, keys that only the other kind has; an embedding file has the token tables alone.
_OTHER_KIND = {
    "base": (r"conditioner\.embedders\.0\.model\.", f"the {REFINER}; {{use}}"),
    "refiner": (r"conditioner\.embedders\.1\.model\.(?!token_embedding\.)", f"the {BASE}; {{use}}"),
}
_USE = {"base": "use the SDXL base model", "refiner": "use the SDXL refiner"}


# Changes of the UNet that SDXL's name and most of its tensors survive, by a pattern of the keys that they add.
_EXTENSIONS = (
    (r"model\.diffusion_model\.time_embed\.cond_proj\.", "an LCM that embeds the guidance scale (cond_proj)"),
    (r".*\.lora_|.*\.lora\.|lora_", "a model with a LoRA that is not merged"),
    (r".*(to_[kv]_ip|image_proj|ip_adapter)\b", "a model with an IP-Adapter"),
    (r"control_model\.|.*\.(zero_convs|input_hint_block)\.", "a model with a ControlNet"),
    (r"conditioner\.embedders\.[2-9]\.", "a model with more than two text encoders"),
    (r".*motion_modules\.", "a model with AnimateDiff's motion modules"),
    (r".*\.(absmax|quant_map|SCB|qweight|qzeros|weight_format|quant_state\..*)$", "a quantized model"),
)
_INPUT_CHANNELS = {8: "an instruct-pix2pix model", 9: "an inpainting model"}
_UNET = "model.diffusion_model."


def detect_foreign_format(header: bytes) -> str:
    """Return what a file that begins with `header` seems to be, and what to do; "" if it may be a tensor file."""
    for pattern, description in _FILE_SIGNATURES:
        if re.match(pattern, header, re.IGNORECASE | re.DOTALL):
            return description
    return ""


def detect_other_model(keys: Iterable[str], kind: str) -> str:
    """Return what a file with tensors of these `keys` seems to be where a model of `kind` is wanted, and what to do.

    Returns "" if nothing is recognized.
    """
    keys = list(keys)
    for pattern, description in (*_KEY_PATTERNS, _OTHER_KIND[kind]):
        if any(re.match(pattern, key) for key in keys):
            return description.format(use=_USE[kind])
    dotted = [key for key in keys if "." in key]
    return _EMBEDDING if dotted and all("token_embedding" in key for key in dotted) else ""


def explain_misfit(
    missing: Collection[str],
    unexpected: Collection[str],
    mismatched: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]],
    kind: str,
) -> str:
    """Return what a checkpoint seems to be that has most tensors of a model of `kind`, but not all or others too.

    mismatched: shape in the checkpoint and shape in the model, by name
    """
    use = _USE[kind]
    for pattern, description in _EXTENSIONS:
        if any(re.match(pattern, key) for key in unexpected):
            return f"it seems to be {description}; {use}"
    found, expected = mismatched.get(_UNET + "input_blocks.0.0.weight", ((), ()))
    if len(found) == 4 and found[1:2] != expected[1:2]:
        model = _INPUT_CHANNELS.get(found[1], "another model")
        return f"it seems to be {model}, whose UNet has {found[1]} input channels instead of {expected[1]}; {use}"
    if not unexpected and not mismatched:
        blocks = [key for key in missing if ".transformer_blocks." in key]
        if len(blocks) == len(missing) and _are_whole_blocks(blocks):
            return f"its UNet has fewer transformer blocks, as distilled models such as SSD-1B and Vega have; {use}"
        return "it is incomplete or changed; take a fresh copy"
    if mismatched:
        return f"it is a model of other sizes than the config's model section describes; {use}"
    if missing:
        return f"its tensors have other names or belong to another model; {use}"
    return f"it holds tensors that this model does not have; {use}"


def _are_whole_blocks(keys: Iterable[str]) -> bool:
    """Return whether `keys` are those of whole transformer blocks: no part of a damaged file ends there."""
    counts = Counter(re.sub(r"(\.transformer_blocks\.\d+)\..*", r"\1", key) for key in keys)
    return len(set(counts.values())) == 1 and min(counts.values()) > 10
