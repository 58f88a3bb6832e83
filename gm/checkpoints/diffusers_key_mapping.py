"""Key mapping of diffusers folders: keys of diffusers and transformers → those of the published single file.

`unet_key_mapping` and `vae_key_mapping` rename the keys of diffusers' UNet2DConditionModel and AutoencoderKL by rule.
`convert_openclip` and `convert_text_encoder_2` turn transformers' CLIPTextModel and CLIPTextModelWithProjection into
OpenCLIP's text tower, which the published file holds: the latter as second encoder of an SDXL base model, as only one
of a refiner.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from gm.checkpoints.lazy_tensor import LazyTensor, in_memory
from gm.config.networks import UNetConfig, VAEConfig

KeyMapping = Callable[[str], str]
_Rule = tuple[str, str | Callable[[re.Match], str]]  # pattern, replacement

# Scales CLIP's comparison of images with texts, so the folder lacks it; the published file holds ln 100.
LOGIT_SCALE = 4.6052

_UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
    "query": "q",  # these four: before diffusers 0.12
    "key": "k",
    "value": "v",
    "proj_attn": "proj_out",
}
_OPENCLIP_RULES = (
    (r"^text_model\.", ""),
    (r"^embeddings\.token_embedding\.", "token_embedding."),
    (r"^embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^final_layer_norm\.", "ln_final."),
    (r"^text_projection\.weight$", "text_projection"),
    (r"^encoder\.layers\.", "transformer.resblocks."),
    (r"\.layer_norm(\d)\.", r".ln_\1."),
    (r"\.self_attn\.", ".attn."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
)
_QUERY = re.compile(r"(.*\.attn)\.q_proj\.(weight|bias)")


def unet_key_mapping(config: UNetConfig) -> KeyMapping:
    """Return the key mapping of a UNet.

    On the way down, `input_blocks` counts the first convolution, then the residual blocks and the downsampling of each
    level; on the way up, `output_blocks` counts residual blocks only, and the upsampling is the last layer of a level's
    last block.
    """
    blocks = config.num_res_blocks + 1

    def upsampler(match: re.Match) -> str:
        level = int(match[1])
        has_attention = config.transformer_depth[::-1][level : level + 1] != (0,)
        return f"output_blocks.{level * blocks + blocks - 1}.{2 if has_attention else 1}.conv."

    def resnet(match: re.Match) -> str:
        return match[1] + _UNET_RESNET.get(match[2], match[2])

    def input_block(match: re.Match) -> int:
        return 1 + int(match[1]) * blocks + int(match[2])

    def output_block(match: re.Match) -> int:
        return int(match[1]) * blocks + int(match[2])

    return _compile(
        (r"^conv_in\.", "input_blocks.0.0."),
        (r"^time_embedding\.linear_1\.", "time_embed.0."),
        (r"^time_embedding\.linear_2\.", "time_embed.2."),
        (r"^add_embedding\.linear_1\.", "label_emb.0.0."),
        (r"^add_embedding\.linear_2\.", "label_emb.0.2."),
        (r"^conv_norm_out\.", "out.0."),
        (r"^conv_out\.", "out.2."),
        (r"(resnets\.\d+\.)(\w+)", resnet),
        (r"^down_blocks\.(\d+)\.resnets\.(\d+)\.", lambda m: f"input_blocks.{input_block(m)}.0."),
        (r"^down_blocks\.(\d+)\.attentions\.(\d+)\.", lambda m: f"input_blocks.{input_block(m)}.1."),
        (r"^down_blocks\.(\d+)\.downsamplers\.0\.conv\.", lambda m: f"input_blocks.{(int(m[1]) + 1) * blocks}.0.op."),
        (r"^mid_block\.resnets\.(\d+)\.", lambda m: f"middle_block.{2 * int(m[1])}."),
        (r"^mid_block\.attentions\.0\.", "middle_block.1."),
        (r"^up_blocks\.(\d+)\.resnets\.(\d+)\.", lambda m: f"output_blocks.{output_block(m)}.0."),
        (r"^up_blocks\.(\d+)\.attentions\.(\d+)\.", lambda m: f"output_blocks.{output_block(m)}.1."),
        (r"^up_blocks\.(\d+)\.upsamplers\.0\.conv\.", upsampler),
    )


def vae_key_mapping(config: VAEConfig) -> KeyMapping:
    """Return the key mapping of an autoencoder; the published decoder counts its levels from the top."""
    top = len(config.channel_mult) - 1

    def attention(match: re.Match) -> str:
        return "mid.attn_1." + _VAE_ATTENTION.get(match[1], match[1]) + "."

    return _compile(
        (r"mid_block\.attentions\.0\.(\w+(?:\.0)?)\.", attention),
        (r"mid_block\.resnets\.(\d+)\.", lambda m: f"mid.block_{int(m[1]) + 1}."),
        (r"^encoder\.down_blocks\.(\d+)\.", r"encoder.down.\1."),
        (r"^decoder\.up_blocks\.(\d+)\.", lambda m: f"decoder.up.{top - int(m[1])}."),
        (r"\.resnets\.(\d+)\.", r".block.\1."),
        (r"\.conv_shortcut\.", ".nin_shortcut."),
        (r"\.downsamplers\.0\.conv\.", ".downsample.conv."),
        (r"\.upsamplers\.0\.conv\.", ".upsample.conv."),
        (r"\.conv_norm_out\.", ".norm_out."),
    )


def convert_text_encoder_2(tensors: dict[str, LazyTensor], prefix: str) -> dict[str, LazyTensor]:
    """Return OpenCLIP's text tower with its projection, which is transposed, as `convert_openclip` does."""
    published = convert_openclip(tensors, prefix)
    projection = f"{prefix}text_projection"
    if projection in published:
        published[projection] = transpose(published[projection])
    published.setdefault(f"{prefix}logit_scale", in_memory(np.array(LOGIT_SCALE, np.float32)))
    return published


def convert_openclip(tensors: dict[str, LazyTensor], prefix: str) -> dict[str, LazyTensor]:
    """Return the tensors of OpenCLIP's text tower by their published keys, which begin with `prefix`.

    Query, key and value become one matrix.
    """
    rename = _compile(*_OPENCLIP_RULES)
    renamed = {rename(key): tensor for key, tensor in tensors.items()}
    published = {}
    for key in list(renamed):
        match = _QUERY.fullmatch(key)
        parts = [f"{match[1]}.{part}_proj.{match[2]}" for part in "qkv"] if match else []
        if match and all(part in renamed for part in parts):
            published[f"{prefix}{match[1]}.in_proj_{match[2]}"] = _concatenate([renamed.pop(part) for part in parts])
    return published | {prefix + key: tensor for key, tensor in renamed.items()}


def _compile(*rules: _Rule) -> KeyMapping:
    """Return the function that applies `rules` one after the other."""
    compiled = [(re.compile(pattern), replacement) for pattern, replacement in rules]

    def rename(key: str) -> str:
        for pattern, replacement in compiled:
            key = pattern.sub(replacement, key)
        return key

    return rename


def _concatenate(parts: list[LazyTensor]) -> LazyTensor:
    """Return `parts` concatenated along the first axis."""

    def release() -> None:
        for part in parts:
            part.release()

    shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
    return LazyTensor(shape, parts[0].dtype, lambda: np.concatenate([part.read() for part in parts]), release)


def transpose(tensor: LazyTensor) -> LazyTensor:
    """Return the weight [outputs, inputs] of a linear layer as the matrix W of x @ W."""
    return LazyTensor(tensor.shape[::-1], tensor.dtype, lambda: tensor.read().T, tensor.release)
