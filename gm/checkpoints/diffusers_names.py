"""Names of diffusers' UNet2DConditionModel and AutoencoderKL → those of the published single file, by rule."""

from __future__ import annotations

import re
from collections.abc import Callable

from gm.config.model import UNetConfig, VAEConfig

Rename = Callable[[str], str]
_Rule = tuple[str, str | Callable[[re.Match], str]]

_UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_ATTENTION = {
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


def unet(config: UNetConfig) -> Rename:
    """Return the renaming of a UNet's parameters.

    Going down, `input_blocks` counts the first convolution, then each level's residual blocks and its downsampling;
    going up, `output_blocks` counts residual blocks only, and the upsampling is a further layer of a level's last.
    """
    down, up = config.num_res_blocks + 1, config.num_res_blocks + 1

    def upsampler(match: re.Match) -> str:
        level = int(match[1])
        layer = 2 if config.transformer_depth[::-1][level : level + 1] != (0,) else 1  # behind the attention, if any
        return f"output_blocks.{level * up + up - 1}.{layer}.conv."

    def resnet(match: re.Match) -> str:
        return match[1] + _UNET_RESNET.get(match[2], match[2])

    return _renaming(
        (r"^conv_in\.", "input_blocks.0.0."),
        (r"^time_embedding\.linear_1\.", "time_embed.0."),
        (r"^time_embedding\.linear_2\.", "time_embed.2."),
        (r"^add_embedding\.linear_1\.", "label_emb.0.0."),
        (r"^add_embedding\.linear_2\.", "label_emb.0.2."),
        (r"^conv_norm_out\.", "out.0."),
        (r"^conv_out\.", "out.2."),
        (r"(resnets\.\d+\.)(\w+)", resnet),
        (r"^down_blocks\.(\d+)\.resnets\.(\d+)\.", lambda m: f"input_blocks.{1 + int(m[1]) * down + int(m[2])}.0."),
        (r"^down_blocks\.(\d+)\.attentions\.(\d+)\.", lambda m: f"input_blocks.{1 + int(m[1]) * down + int(m[2])}.1."),
        (r"^down_blocks\.(\d+)\.downsamplers\.0\.conv\.", lambda m: f"input_blocks.{(int(m[1]) + 1) * down}.0.op."),
        (r"^mid_block\.resnets\.(\d+)\.", lambda m: f"middle_block.{2 * int(m[1])}."),
        (r"^mid_block\.attentions\.0\.", "middle_block.1."),
        (r"^up_blocks\.(\d+)\.resnets\.(\d+)\.", lambda m: f"output_blocks.{int(m[1]) * up + int(m[2])}.0."),
        (r"^up_blocks\.(\d+)\.attentions\.(\d+)\.", lambda m: f"output_blocks.{int(m[1]) * up + int(m[2])}.1."),
        (r"^up_blocks\.(\d+)\.upsamplers\.0\.conv\.", upsampler),
    )


def vae(config: VAEConfig) -> Rename:
    """Return the renaming of an autoencoder's parameters; the published decoder counts its levels from the top."""
    top = len(config.channel_mult) - 1

    def attention(match: re.Match) -> str:
        return "mid.attn_1." + _ATTENTION.get(match[1], match[1]) + "."

    return _renaming(
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


def _renaming(*rules: _Rule) -> Rename:
    """Return the function that applies `rules` (pattern, replacement) one after the other."""
    compiled = [(re.compile(pattern), replacement) for pattern, replacement in rules]

    def rename(name: str) -> str:
        for pattern, replacement in compiled:
            name = pattern.sub(replacement, name)
        return name

    return rename
