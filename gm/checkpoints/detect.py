"""Detection of files of another kind, by their first bytes or by the keys of their tensors, for error messages."""

from __future__ import annotations

import re
from collections.abc import Iterable

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
    (r"lora_|.*\.lora_|.*\.lora\.|.*\.hada_", "a LoRA, which modifies a model but is not one; {use}"),
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
