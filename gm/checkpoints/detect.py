"""What a file that is not wanted seems to be: by its first bytes, or by the names of its tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable

_INSTEAD = "use the .safetensors file of the same model"
_BEGINNINGS = (
    (rb"PK\x03\x04", f"a PyTorch file or another zip archive; {_INSTEAD}"),
    (rb"\x80[\x02-\x05]", f"a Python pickle, as PyTorch writes; {_INSTEAD}"),
    (rb"\s*<(!doctype|html|head|\?xml)", "a web page, as a failed download leaves; download the file itself again"),
    (rb"version https://git-lfs", "a git-lfs pointer; fetch the file itself with git lfs pull"),
    (rb"\x1f\x8b", "a gzip archive; unpack it first"),
    (rb"GGUF", f"a GGUF file; {_INSTEAD}"),
    (rb"\x89HDF", f"an HDF5 file; {_INSTEAD}"),
    (rb"\x93NUMPY", "a NumPy array; give a .safetensors or .ckpt file"),
    (rb"\x89PNG|\xff\xd8\xff|RIFF....WEBP", "an image; give a .safetensors or .ckpt file"),
    (rb"\{", "JSON text; give a .safetensors or .ckpt file"),
)

BASE = "SDXL base model, which goes to --weight and is converted with the --config of a base model"
REFINER = (
    "SDXL refiner, which goes to --pipeline_weight and is converted with --config configs/sampling/sd_xl_refiner.yaml"
)
_CONCEPT = "a learned concept, which goes to --textual_inversion_weight"
# The first pattern that a name begins with decides; {use} is what to do instead.
_NAMES = (
    (r"lora_|.*\.lora_|.*\.lora\.|.*\.hada_", "a LoRA, which changes a model and is none; {use}"),
    (r"clip_[lg]$|emb_params$|text_encoders_[01]$|emb2?$|string_to_|<", _CONCEPT),
    (r"cond_stage_model\.model\.", "Stable Diffusion 2; {use}"),
    (r"cond_stage_model\.", "Stable Diffusion 1; {use}"),
    (r"control_model\.|controlnet_|input_hint_block\.", "a ControlNet; {use}"),
    (r"(.*\.)?(double|joint)_blocks\.", "Flux or Stable Diffusion 3; {use}"),
    (
        r"(down|up)_blocks\.|mid_block\.|text_model\.|(en|de)coder\.",
        "one network of a model; give the single file or the whole diffusers folder",
    ),
)
# By the kind of model that is wanted, what the other kind has of its own; a learned concept has the token tables alone.
_OTHER_KIND = {
    "base": (r"conditioner\.embedders\.0\.model\.", f"the {REFINER}; {{use}}"),
    "refiner": (r"conditioner\.embedders\.1\.model\.(?!token_embedding\.)", f"the {BASE}; {{use}}"),
}
_USE = {"base": "use the SDXL base model", "refiner": "use the SDXL refiner"}


def foreign(start: bytes) -> str:
    """Return what a file that begins with `start` seems to be, and the way out; "" where it may be one of ours."""
    for pattern, meaning in _BEGINNINGS:
        if re.match(pattern, start, re.IGNORECASE | re.DOTALL):
            return meaning
    return ""


def other_model(names: Iterable[str], kind: str) -> str:
    """Return what a file with tensors of these names seems to be, where a model of `kind` is wanted, and the way out.

    "" is for no idea.
    """
    names = list(names)
    for pattern, meaning in (*_NAMES, _OTHER_KIND[kind]):
        if any(re.match(pattern, name) for name in names):
            return meaning.format(use=_USE[kind])
    dotted = [name for name in names if "." in name]
    return _CONCEPT if dotted and all("token_embedding" in name for name in dotted) else ""
