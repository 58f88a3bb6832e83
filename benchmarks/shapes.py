"""The operators that are measured alone, in the shapes that a training step of one size gives them."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

from gm.config.model import ModelConfig

LINKS = 20  # how often an operator is chained in one graph
EPSILON = 1e-5


@dataclass(frozen=True)
class Shape:
    """One operator on `tokens` of `width` channels (or pixels `height` × `tokens`/`height`), and what else it needs."""

    operator: str
    width: int
    tokens: int
    heads: int = 1
    keys: int = 0  # tokens of the context, if it is not the sequence itself
    causal: bool = False
    height: int = 0
    groups: int = 1

    def __str__(self) -> str:
        if self.operator == "softmax":
            return f"softmax {self.heads} × {self.tokens} × {self.keys or self.tokens}"
        if self.operator == "attention":
            kind = "causal" if self.causal else "self" if not self.keys else f"{self.keys} keys"
            return f"attention {self.width} × {self.tokens}, {self.heads} heads, {kind}"
        return f"{self.operator} {self.width} × {self.tokens}"


def shapes(config: ModelConfig, pixels: int) -> list[Shape]:
    """Return the operators on every level of the UNet that has them, and in the second text encoder."""
    unet, text = config.unet, config.text_encoder_2
    side, found = pixels // config.vae.downsample_factor, []
    for mult, depth in zip(unet.channel_mult, unet.transformer_depth, strict=True):
        width, tokens = mult * unet.model_channels, side * side
        found.append(Shape("group_norm", width, tokens, height=side, groups=unet.norm_num_groups))
        if depth:
            found += _sequence(width, tokens, width // unet.num_head_channels, text.positions)
        side = -(-side // 2)
    found += _sequence(text.width, text.positions, text.heads, 0)
    order = ("layer_norm", "group_norm", "softmax", "gelu", "project", "attention")
    return sorted(dict.fromkeys(found), key=lambda shape: order.index(shape.operator))


def _sequence(width: int, tokens: int, heads: int, keys: int) -> list[Shape]:
    """Return the operators of a layer; with `keys` it attends to itself and to them, without it is causal."""
    made = [Shape("layer_norm", width, tokens), Shape("gelu", 4 * width, tokens), Shape("project", width, tokens)]
    made.append(Shape("softmax", tokens, tokens, heads))
    attention = Shape("attention", width, tokens, heads, causal=not keys)
    if not keys:
        return [*made, attention]
    across = dataclasses.replace(attention, keys=keys)
    return [*made, Shape("softmax", keys, tokens, heads, keys=keys), attention, across]


def written(wanted: list[Shape]) -> str:
    return json.dumps([dataclasses.asdict(shape) for shape in wanted])


def read(text: str) -> list[Shape]:
    """Return the shapes that `written` wrote."""
    return [Shape(**values) for values in json.loads(text)]
