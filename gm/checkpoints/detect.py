"""Detection of a model's family, and of files of another kind, by first bytes, keys and shapes of tensors.

A kind of model is "base" or "refiner" for SDXL, else its family ("sd1", "sd2").
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from gm.config.model import FAMILIES, ModelConfig
from gm.errors import UserError

Shapes = Mapping[str, tuple[int, ...]]

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
    (r"clip_[lgh]$|em[bp]_params$|text_encoders_[01]$|emb2?$|string_to_|<", _EMBEDDING),
    (r"cond_stage_model\.(roberta|transformation)", "AltDiffusion, whose text encoder is XLM-RoBERTa; {use}"),
    (r"cond_stage_model\.transformer\.(attn_layers|token_emb)\.", "latent diffusion of 2021 with BERT; {use}"),
    (r"cond_stage_model\.(model\.visual|visual_projection|mapper)", "a model conditioned on images; {use}"),
    (r"low_scale_model\.", "an upscaler, whose UNet has 7 input channels; {use}"),
    (r"control_model\.|controlnet_|input_hint_block\.", "a ControlNet; {use}"),
    (r"(.*\.)?(double|joint)_blocks\.", "Flux or Stable Diffusion 3; {use}"),
    (
        r"(down|up)_blocks\.|mid_block\.|text_model\.|(en|de)coder\.",
        "one network of a model; give the single file or the whole diffusers folder",
    ),
)
# By kind of model, keys that only this kind has; an embedding file has the token tables alone.
_KINDS = {
    "sd2": (
        r"cond_stage_model\.model\.",
        "Stable Diffusion 2; leave out --config, or give configs/training/sd_v2.1_base_textual_inversion.yaml",
    ),
    "sd1": (
        r"cond_stage_model\.transformer\.",
        "Stable Diffusion 1; leave out --config, or give configs/training/sd_v1.5_textual_inversion.yaml",
    ),
    "refiner": (r"conditioner\.embedders\.0\.model\.", f"the {REFINER}; {{use}}"),
    "base": (r"conditioner\.embedders\.1\.model\.(?!token_embedding\.)", f"the {BASE}; {{use}}"),
}
# Shipped configs of each kind; the first is that of a model that says nothing else.
SHIPPED_CONFIGS = {
    "base": (
        "configs/training/sd_xl_base_finetune_textual_inversion.yaml",
        "configs/training/sdxl_v_prediction_finetune_textual_inversion.yaml",
        "configs/training/tiny_textual_inversion.yaml",
    ),
    "refiner": ("configs/sampling/sd_xl_refiner.yaml",),
    "sd1": (
        "configs/training/sd_v1.5_textual_inversion.yaml",
        "configs/training/tiny_sd1_textual_inversion.yaml",
    ),
    "sd2": (
        "configs/training/sd_v2.1_base_textual_inversion.yaml",
        "configs/training/sd_v2.1_768_v_textual_inversion.yaml",
    ),
}
_USE = {
    "base": "use the SDXL base model",
    "refiner": "use the SDXL refiner",
    "sd1": "use Stable Diffusion 1.4, 1.5 or a fine-tuned one",
    "sd2": "use Stable Diffusion 2.0, 2.1 or a fine-tuned one",
}


# Changes of the UNet that SDXL's name and most of its tensors survive, by a pattern of the keys that they add.
_EXTENSIONS = (
    (r"model\.diffusion_model\.time_embed\.cond_proj\.", "an LCM that embeds the guidance scale (cond_proj)"),
    (r".*\.lora_|.*\.lora\.|lora_", "a model with a LoRA that is not merged"),
    (r"(model\.diffusion_model\.label_emb|noise_augmentor|embedder)\.", "an unCLIP model, conditioned on an image"),
    (r".*\.(position_net|fuser)\.", "a GLIGEN model, conditioned on boxes"),
    (r"(depth_model|cc_projection)\b", "a model conditioned on a depth map or a view"),
    (r".*(to_[kv]_ip|image_proj|ip_adapter)\b", "a model with an IP-Adapter"),
    (r"control_model\.|.*\.(zero_convs|input_hint_block)\.", "a model with a ControlNet"),
    (r"conditioner\.embedders\.[2-9]\.", "a model with more than two text encoders"),
    (r".*motion_modules\.", "a model with AnimateDiff's motion modules"),
    (r".*\.(absmax|quant_map|SCB|qweight|qzeros|weight_format|quant_state\..*)$", "a quantized model"),
)
_INPUT_CHANNELS = {
    5: "a depth-to-image model",
    7: "an upscaler",
    8: "an instruct-pix2pix model",
    9: "an inpainting model",
}
_UNET = "model.diffusion_model."
KIND_OF_CONTEXT = {768: "sd1", 1024: "sd2", 1280: "refiner", 2048: "base"}  # by its published width


def detect_foreign_format(header: bytes) -> str:
    """Return the probable kind of a file that begins with `header`, and a remedy; "" if it may be a tensor file."""
    for pattern, description in _FILE_SIGNATURES:
        if re.match(pattern, header, re.IGNORECASE | re.DOTALL):
            return description
    return ""


def model_kind(config: ModelConfig) -> str:
    """Return the kind of model that `config` describes, a key of `_KINDS`."""
    return config.kind if config.family == "sdxl" else config.family


def detect_family(shapes: Shapes) -> str:
    """Return the kind of model whose single file has tensors of these `shapes` by key; "" if it is none of ours.

    The key prefix of the text encoders tells; else the width of the context, as diffusers and ComfyUI do. Keys may be
    published, MindSpore's or mindone's.
    """
    return family_of_text_encoder(shapes) or _family_of_context(shapes)


def family_of_text_encoder(shapes: Shapes) -> str:
    """Return the kind of model by the keys of its text encoders, "" for a file without them."""
    keys = [re.sub(r"^(_orig_mod|module)\.", "", key) for key in shapes]
    # mindone has OpenCLIP's keys for both, with the other prefix; only the UNet's projections differ at any size.
    if any(key.startswith("cond_stage_model.transformer.transformer_layer.") for key in keys):
        return family_of_unet(shapes)
    if any(key.startswith("conditioner.embedders.1.") for key in keys):
        return "base"
    if any(key.startswith("conditioner.embedders.0.model.") for key in keys):
        # SD-Turbo is SD 2 with sgm's prefix; its UNet lacks the refiner's class input.
        unet = [key for key in keys if key.startswith(_UNET)]
        return "refiner" if not unet or any(".label_emb." in key for key in unet) else "sd2"
    if any(key.startswith("cond_stage_model.model.") for key in keys):
        return "sd2"
    if any(re.match(r"(cond_stage_model|conditioner\.embedders\.0)\.transformer\.", key) for key in keys):
        return "sd1"
    return ""


def family_of_unet(shapes: Shapes) -> str:
    """Return the kind of model by its UNet: the width of the context, else the shape of the projections, else "".

    Those of SD 1 are 1×1 convolutions, those of SD 2 linear layers; diffusers' keys have the same endings.
    """
    kind = _family_of_context(shapes)
    if kind:
        return kind
    dimensions = {len(shape) for key, shape in shapes.items() if key.endswith(".proj_in.weight")}
    return {4: "sd1", 2: "sd2"}.get(dimensions.pop(), "") if len(dimensions) == 1 else ""


def _family_of_context(shapes: Shapes) -> str:
    """Return the kind by the width of the cross-attention's context, "" for another width than the published ones."""
    widths = {shape[-1] for key, shape in shapes.items() if key.endswith("attn2.to_k.weight") and len(shape) == 2}
    return KIND_OF_CONTEXT.get(widths.pop(), "") if len(widths) == 1 else ""


def check_family(kind: str, config: ModelConfig, source: str | Path) -> None:
    """Raise UserError if the model `source`, of this `kind`, is of another family than that of `config`."""
    family = {"base": "sdxl", "refiner": "sdxl"}.get(kind, kind)
    if kind and family != config.family:
        raise UserError(
            f"{source} is {FAMILIES[family].title}, but the config describes {config.traits.title} ({config.version}); "
            f"leave out --config, or give --config {' or '.join(_published(kind))}"
        )


def _published(kind: str) -> list[str]:
    """Return the shipped configs of a kind of model, without that of the tiny one."""
    return [path for path in SHIPPED_CONFIGS[kind] if not Path(path).name.startswith("tiny_")]


def detect_other_model(keys: Iterable[str], kind: str) -> str:
    """Return the probable kind of a file with these `keys` in place of a model of `kind`, and a remedy.

    Returns "" if nothing is recognized.
    """
    keys = list(keys)
    others = [patterns for other, patterns in _KINDS.items() if other != kind]
    for pattern, description in (*_KEY_PATTERNS, *others):
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
    """Return the probable kind of a checkpoint that has most tensors of a model of `kind`, but not all, or others too.

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
        sizes = "it is a model of other sizes than the config's model section describes"
        return f"{sizes}; {use}, or give a --config with its sizes"
    if missing:
        return f"its tensors have other names or belong to another model; {use}"
    return f"it holds tensors that this model does not have; {use}"


def _are_whole_blocks(keys: Iterable[str]) -> bool:
    """Return whether `keys` are those of whole transformer blocks: no part of a damaged file ends there."""
    counts = Counter(re.sub(r"(\.transformer_blocks\.\d+)\..*", r"\1", key) for key in keys)
    return len(set(counts.values())) == 1 and min(counts.values()) > 10
