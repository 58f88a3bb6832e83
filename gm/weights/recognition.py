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
    (rb"\x89PNG|\xff\xd8\xff|RIFF....WEBP", "a picture; give a .safetensors or .ckpt file"),
    (rb"\{", "JSON text; give a .safetensors or .ckpt file"),
)

_BASE = "use the SDXL base model"
_CONCEPT = "a learned concept, which goes to --textual_inversion_weight"
# The first pattern that a name begins with decides.
_NAMES = (
    (r"lora_|.*\.lora_|.*\.lora\.|.*\.hada_", f"a LoRA, which changes a model and is none; {_BASE}"),
    (r"clip_[lg]$|emb_params$|text_encoders_[01]$|emb2?$|string_to_|<", _CONCEPT),
    (r"cond_stage_model\.model\.", f"Stable Diffusion 2; {_BASE}"),
    (r"cond_stage_model\.", f"Stable Diffusion 1; {_BASE}"),
    (r"conditioner\.embedders\.0\.model\.", f"the SDXL refiner; {_BASE}"),
    (r"control_model\.|controlnet_|input_hint_block\.", f"a ControlNet; {_BASE}"),
    (r"(.*\.)?(double|joint)_blocks\.", f"Flux or Stable Diffusion 3; {_BASE}"),
    (
        r"(down|up)_blocks\.|mid_block\.|text_model\.|(en|de)coder\.",
        "one network of a model; give the single file or the whole diffusers folder",
    ),
)


def foreign(start: bytes) -> str:
    """Return what a file that begins with `start` seems to be, and the way out; "" where it may be one of ours."""
    for pattern, meaning in _BEGINNINGS:
        if re.match(pattern, start, re.IGNORECASE | re.DOTALL):
            return meaning
    return ""


def other_model(names: Iterable[str]) -> str:
    """Return what a file with tensors of these names seems to be, and the way out; "" for no idea."""
    names = list(names)
    for pattern, meaning in _NAMES:
        if any(re.match(pattern, name) for name in names):
            return meaning
    dotted = [name for name in names if "." in name]
    return _CONCEPT if dotted and all("token_embedding" in name for name in dotted) else ""
