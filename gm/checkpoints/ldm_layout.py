"""Single files of Stable Diffusion 1 and 2 that other programs write, brought to the layout of latent diffusion.

Sources: CompVis/stable-diffusion (v1-inference.yaml) and Stability-AI/stablediffusion (FrozenOpenCLIPEmbedder in
ldm/modules/encoders/modules.py) for the published names; mindone's examples/stable_diffusion_v2, whose names are listed
in tools/model_conversion/ms_exceptcond_v1.txt and ms_names_v2.txt there; sgm's prefix in SD-Turbo; AUTOMATIC1111's
modules/sd_models.py for files whose text encoder lacks `text_model.`.
"""

from __future__ import annotations

import re

from gm.checkpoints.key_mapping import ParameterShapes
from gm.checkpoints.lazy_tensor import LazyTensor

Tensors = dict[str, LazyTensor]

_TEXT = "cond_stage_model."
_CLIP = f"{_TEXT}transformer.text_model."
_OPENCLIP = f"{_TEXT}model."
_MINDONE_UNET = (
    (re.compile(r"\.(in|out)_layers_norm\."), r".\1_layers.0."),
    (re.compile(r"\.in_layers_conv\.conv\."), ".in_layers.2."),
    (re.compile(r"\.out_layers_conv\.conv\."), ".out_layers.3."),
    # Every other convolution is one level deeper than published, but for those around the transformer blocks.
    (re.compile(r"(model\.diffusion_model\..*)\.conv\.(weight|bias)$"), r"\1.\2"),
)
# mindone's text encoder is OpenCLIP's for both families.
_MINDONE_TEXT = (
    (re.compile(r"\btransformer\.embedding_table$"), "transformer.token_embedding.weight"),
    (re.compile(r"\btransformer\.transformer_layer\."), "transformer.transformer."),
    (re.compile(r"\.attn\.attn\.in_proj\.(weight|bias)$"), r".attn.in_proj_\1"),
    (re.compile(r"\.attn\.attn\.out_proj\."), ".attn.out_proj."),
    (re.compile(r"(resblocks\.\d+)\.(c_fc|c_proj)\."), r"\1.mlp.\2."),
)
_OPENCLIP_TO_CLIP = (
    (re.compile(r"\bpositional_embedding$"), "embeddings.position_embedding.weight"),
    (re.compile(r"\btoken_embedding\."), "embeddings.token_embedding."),
    (re.compile(r"\bln_final\."), "final_layer_norm."),
    (re.compile(r"\btransformer\.resblocks\."), "encoder.layers."),
    (re.compile(r"\.ln_(\d)\."), r".layer_norm\1."),
    (re.compile(r"\.attn\."), ".self_attn."),
    (re.compile(r"\.mlp\.c_fc\."), ".mlp.fc1."),
    (re.compile(r"\.mlp\.c_proj\."), ".mlp.fc2."),
)
_NOT_USED = {
    "projections of the text encoder that no image depends on": re.compile(
        r"cond_stage_model\.((model|transformer|transformer\.text_model)\.)?(logit_scale|text_projection(\.weight)?)"
    ),
    "causal masks": re.compile(r"cond_stage_model\.model\.attn_mask"),
    "a ControlNet": re.compile(r"control_model\..*"),
    "the embeddings of a textual inversion": re.compile(r"embedding_manager\..*"),
}
_LAYER = re.compile(r"cond_stage_model\.model\.transformer\.resblocks\.(\d+)\..*")


def rename_mindone_unet(tensors: Tensors) -> Tensors:
    """Return `tensors` with the published names of a UNet that has mindone's; any other is returned as it is."""
    if not any(".in_layers_conv.conv." in key for key in tensors):
        return tensors
    return {_rename(key, _MINDONE_UNET): tensor for key, tensor in tensors.items()}


def rename_text_encoder(tensors: Tensors, shapes: ParameterShapes) -> Tensors:
    """Return `tensors` with the published names of the text encoder of Stable Diffusion 1 or 2.

    `shapes` are those of the model. Of any other model, all names stay.
    """
    if not any(name.startswith(_TEXT) for name in shapes):
        return tensors
    tensors = {_with_ldm_prefix(key): tensor for key, tensor in tensors.items()}
    is_clip = any(name.startswith(_CLIP) for name in shapes)
    if any(".transformer_layer.resblocks." in key for key in tensors):
        tensors = _rename_mindone_text(tensors, is_clip)
    if is_clip and not any(key.startswith(_CLIP) for key in tensors):
        pattern = re.compile(r"^cond_stage_model\.transformer\.(?=(embeddings|encoder|final_layer_norm)\.)")
        tensors = {pattern.sub(_CLIP, key): tensor for key, tensor in tensors.items()}
    return tensors


def split_unused(tensors: Tensors, shapes: ParameterShapes) -> tuple[Tensors, dict[str, list[str]]]:
    """Return `tensors` without those that Stable Diffusion 1 and 2 do not use, and the keys of these by description.

    Stable Diffusion 2 conditions on the layer before the last of OpenCLIP; the file has the last layer, too, and what
    is in it depends on the program that wrote it.
    """
    if not any(name.startswith(_TEXT) for name in shapes):
        return tensors, {}
    last = 1 + max((int(match[1]) for name in shapes if (match := _LAYER.fullmatch(name))), default=-2)
    keys_by_description: dict[str, list[str]] = {}
    for key in tensors:
        layer = _LAYER.fullmatch(key)
        if layer and int(layer[1]) == last:
            keys_by_description.setdefault("the text encoder's last layer, which no image depends on", []).append(key)
        for description, pattern in _NOT_USED.items():
            if key not in shapes and pattern.fullmatch(key):
                keys_by_description.setdefault(description, []).append(key)
    unused = {key for keys in keys_by_description.values() for key in keys}
    return {key: tensor for key, tensor in tensors.items() if key not in unused}, keys_by_description


def _rename(key: str, rules: tuple[tuple[re.Pattern[str], str], ...]) -> str:
    for pattern, replacement in rules:
        key = pattern.sub(replacement, key)
    return key


def _with_ldm_prefix(key: str) -> str:
    """Return `key` with latent diffusion's prefix of the text encoder in place of sgm's."""
    return re.sub(r"^conditioner\.embedders\.0\.(?=model\.|transformer\.)", _TEXT, key)


def _rename_mindone_text(tensors: Tensors, is_clip: bool) -> Tensors:
    """Return `tensors` with the published names of the text encoder that has mindone's."""
    renamed: Tensors = {}
    prefix = f"{_TEXT}transformer."
    for key, tensor in tensors.items():
        if not key.startswith(prefix):
            renamed[key] = tensor
            continue
        name = _rename(key, _MINDONE_TEXT).removeprefix(prefix)
        fused = re.fullmatch(r"(.*)\.attn\.in_proj_(weight|bias)", name)
        if not is_clip:
            renamed[_OPENCLIP + name] = tensor
        elif fused:
            layer = fused[1].replace("transformer.resblocks.", "encoder.layers.")
            for index, part in enumerate("qkv"):
                renamed[f"{_CLIP}{layer}.self_attn.{part}_proj.{fused[2]}"] = _third(tensor, index)
        else:
            renamed[_CLIP + _rename(name, _OPENCLIP_TO_CLIP)] = tensor
    return renamed


def _third(tensor: LazyTensor, index: int) -> LazyTensor:
    """Return one of three equal parts of the rows: query, key or value of a fused projection."""
    rows = tensor.shape[0] // 3
    part = slice(index * rows, (index + 1) * rows)
    return LazyTensor((rows, *tensor.shape[1:]), tensor.dtype, lambda: tensor.read()[part], tensor.release)
