"""Variants of the published layout that other programs write, brought back to the published layout.

The values that the model uses are the same in all of them. What nothing here uses is left out and named in one line.
"""

from __future__ import annotations

import dataclasses
import re

import numpy as np

from gm.checkpoints import ldm_layout
from gm.checkpoints.diffusers_key_mapping import LOGIT_SCALE, transpose
from gm.checkpoints.key_mapping import IGNORED_SUFFIXES, ParameterShapes, published_name
from gm.checkpoints.lazy_tensor import LazyTensor, in_memory, reshaped
from gm.checkpoints.single_file_statements import MARKER_TENSORS, SCALE_TENSOR

Tensors = dict[str, LazyTensor]

_NOT_USED = {
    # Buffers of latent diffusion's DDPM class (CompVis/stable-diffusion, ldm/models/diffusion/ddpm.py); OneTrainer
    # writes them. `single_file_statements` compares them with the model's schedule.
    "tables of the noise schedule": re.compile(
        r"betas|\w*alphas_cumprod(_prev)?|posterior_\w+|lvlb_weights|logvar|denoiser\.log_sigmas"
    ),
    # ComfyUI's of 2023 and 2024, and text encoder 1 saved as CLIPTextModelWithProjection: SDXL does not project it.
    "the projection of text encoder 1": re.compile(
        r"conditioner\.embedders\.0\.(transformer\.)?(text_model\.)?(logit_scale|text_projection(\.weight)?)"
    ),
    "the counters and the optimizer's state of a training": re.compile(
        r"global_step|epoch(_num)?|step_num|cur_step|learning_rate|loss_scale|scale_sense|last_overflow_iterator_step"
        r"|beta[12]_power|(moments?|moment1|moment2|adam_m|adam_v|accum|swap|optimizer)\..*"
    ),
    "the loss of the autoencoder's training": re.compile(r"first_stage_model\.loss\..*"),
    "causal masks": re.compile(r"conditioner\.embedders\.\d\.model\.attn_mask"),
    "": re.compile("|".join(map(re.escape, (*MARKER_TENSORS, SCALE_TENSOR)))),  # compared as statements
}
_WRAPPERS = re.compile(r"(?<=\.)(_backbone|_orig_mod)\.|^(_orig_mod|module)\.")
_VAE_ATTENTION = re.compile(r"(first_stage_model\..*\.mid\.attn_1)\.(\w+(?:\.0)?)\.(weight|bias|gamma|beta)")
_VAE_ATTENTION_NAMES = {
    "group_norm": "norm",
    **dict.fromkeys(("to_q", "query"), "q"),
    **dict.fromkeys(("to_k", "key"), "k"),
    **dict.fromkeys(("to_v", "value"), "v"),
    **dict.fromkeys(("to_out.0", "proj_attn"), "proj_out"),
}
# A 1×1 convolution in some programs, a linear layer in others.
_CONVOLUTION_OR_LINEAR = re.compile(r".*(\.mid\.attn_1\.(q|k|v|proj_out)|\.proj_(in|out))\.weight")
_TOKEN_TABLE = re.compile(r".*\.token_embedding\.embedding_table")


def to_published_layout(tensors: Tensors, shapes: ParameterShapes) -> tuple[Tensors, list[str]]:
    """Return `tensors` with MindSpore's names for those in `shapes`, and descriptions of the tensors left out.

    A tensor without a rule is returned as it is: the strict check reports it.
    """
    names = {published_name(name): name for name in shapes}
    tensors = {_WRAPPERS.sub("", key): tensor for key, tensor in tensors.items()}
    tensors = {_published_attention(key): tensor for key, tensor in tensors.items()}
    tensors = ldm_layout.rename_text_encoder(ldm_layout.rename_mindone_unet(tensors), shapes)
    # A file with MindSpore's names passes through: where they differ from published keys, they are not among these.
    tensors = {names.get(key, key): tensor for key, tensor in tensors.items() if not key.endswith(IGNORED_SUFFIXES)}
    tensors, notes = _without_averages(tensors, shapes)
    tensors, unused = ldm_layout.split_unused(tensors, shapes)
    notes += [_describe(description, keys) for description, keys in unused.items()]
    for description, pattern in _NOT_USED.items():
        left_out = [key for key in tensors if key not in shapes and pattern.fullmatch(key)]
        if left_out and description:
            notes.append(_describe(description, left_out))
        for key in left_out:
            del tensors[key]
    _fix_projection(tensors, shapes)
    for name, shape in shapes.items():
        if name.endswith(".logit_scale"):
            # diffusers' and kohya's converters do not write it, and no image depends on it.
            tensors.setdefault(name, in_memory(np.array(LOGIT_SCALE, np.float32)))
        if name in tensors:
            tensors[name] = _reshape(name, tensors[name], shape, notes)
    return tensors, notes


def _without_averages(tensors: Tensors, shapes: ParameterShapes) -> tuple[Tensors, list[str]]:
    """Return `tensors` without moving averages of the weights, which stand in only for weights that are missing.

    latent diffusion writes `model_ema.` and the name without dots (ldm/modules/ema.py), mindone `ema.` and the name.
    """
    averages = {"model_ema." + published_name(name).removeprefix("model.").replace(".", ""): name for name in shapes}
    averages |= {f"ema.{key}": name for name in shapes for key in (name, published_name(name))}
    ema = {key: tensor for key, tensor in tensors.items() if key.startswith(("model_ema.", "ema."))}
    used = {averages[key]: tensor for key, tensor in ema.items() if averages.get(key, key) not in {*tensors, key}}
    rest = {key: tensor for key, tensor in tensors.items() if key not in ema}
    notes = []
    if used:
        notes.append(f"nothing else for {len(used)} weights, of which the file has moving averages alone")
    elif ema:
        notes.append(_describe("moving averages of the weights", list(ema)))
    return rest | used, notes


def _published_attention(key: str) -> str:
    """Return the published key of a tensor of the autoencoder's attention; EveryDream has diffusers' names for it."""
    match = _VAE_ATTENTION.fullmatch(key)
    if match is None:
        return key
    return f"{match[1]}.{_VAE_ATTENTION_NAMES.get(match[2], match[2])}.{match[3]}"


def _fix_projection(tensors: Tensors, shapes: ParameterShapes) -> None:
    """Rename text encoder 2's projection where it is the weight of a linear layer, which is transposed.

    diffusers' script of before February 2024 and Playground 2 have it so.
    """
    for name in shapes:
        if name.endswith(".text_projection") and name not in tensors and f"{name}.weight" in tensors:
            tensors[name] = transpose(tensors.pop(f"{name}.weight"))


def _reshape(name: str, tensor: LazyTensor, shape: tuple[int, ...], notes: list[str]) -> LazyTensor:
    """Return a tensor that differs from `shape` harmlessly in that shape; any other as it is."""
    if tensor.shape == shape:
        return tensor
    most_added = shape[0] // 10 if shape else 0  # more rows are another vocabulary
    if shape == () and tensor.shape == (1,):
        return reshaped(tensor, shape)
    if _CONVOLUTION_OR_LINEAR.fullmatch(name) and _without_ones(tensor.shape) == _without_ones(shape):
        return reshaped(tensor, shape)
    if _TOKEN_TABLE.fullmatch(name) and tensor.shape[1:] == shape[1:] and 0 < tensor.shape[0] - shape[0] <= most_added:
        added = f"row {shape[0]}" if tensor.shape[0] == shape[0] + 1 else f"rows {shape[0]} to {tensor.shape[0] - 1}"
        notes.append(f"{added} of {published_name(name)}, added tokens (--textual_inversion_weight takes embeddings)")
        return dataclasses.replace(tensor, shape=shape, read=lambda: tensor.read()[: shape[0]])
    return tensor


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return `shape` [outputs, inputs, 1, 1] as [outputs, inputs]."""
    return shape[:2] if shape[2:] == (1, 1) else shape


def _describe(description: str, keys: list[str]) -> str:
    return f"{description} ({keys[0]})" if len(keys) == 1 else f"{description} ({len(keys)} tensors, {keys[0]} …)"
