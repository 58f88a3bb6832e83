"""The toolkit's operators against MindSpore's own and PyTorch's, in the shapes of a training step, in turns.

    python benchmarks/operators.py --size full

"ours" is float32, "bfloat16" the same with bfloat16 weights. Each is chained 20 times inside one graph; the seconds are
those of one operator, forward, and forward and backward.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from dataclasses import dataclass
from typing import Any

from benchmarks import report
from benchmarks.cases import SIZES
from benchmarks.workers import Measurement, alternate, worker
from gm.config import cli
from gm.config.model import ModelConfig
from gm.errors import UserError

LINKS = 20  # number of chained operators in one graph
EPSILON = 1e-5
_SIDES = ("ours", "native", "PyTorch", "bfloat16")
_PASSES = ("forward", "forward and backward")


@dataclass(frozen=True)
class Shape:
    """Operator on `tokens` of `width` channels.

    For group_norm and convolution (3×3) the tokens are `height` × `tokens`/`height` pixels.
    """

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
    """Return the operators of every level of the UNet and of the last text encoder."""
    unet, text = config.unet, list(config.text_encoders.values())[-1]
    side = pixels // config.vae.downsample_factor
    operators: list[Shape] = []
    for mult, depth in zip(unet.channel_mult, unet.transformer_depth, strict=True):
        width, tokens = mult * unet.model_channels, side * side
        operators.append(Shape("group_norm", width, tokens, height=side, groups=unet.norm_num_groups))
        operators.append(Shape("convolution", width, tokens, height=side))
        if depth:
            operators += _sequence(width, tokens, unet.heads(width), text.context_length)
        side = -(-side // 2)
    operators += _sequence(text.width, text.context_length, text.heads, 0)
    order = ("layer_norm", "group_norm", "softmax", "gelu", "project", "convolution", "attention")
    return sorted(dict.fromkeys(operators), key=lambda shape: order.index(shape.operator))


def _sequence(width: int, tokens: int, heads: int, keys: int) -> list[Shape]:
    """Return the operators of a layer: with `keys` self- and cross-attention, without causal attention."""
    operators = [Shape("layer_norm", width, tokens), Shape("gelu", 4 * width, tokens), Shape("project", width, tokens)]
    operators.append(Shape("softmax", tokens, tokens, heads))
    attention = Shape("attention", width, tokens, heads, causal=not keys)
    if not keys:
        return [*operators, attention]
    across = dataclasses.replace(attention, keys=keys)
    return [*operators, Shape("softmax", keys, tokens, heads, keys=keys), attention, across]


def to_json(selected: list[Shape]) -> str:
    return json.dumps([dataclasses.asdict(shape) for shape in selected])


def from_json(text: str) -> list[Shape]:
    """Return the shapes that `to_json` wrote."""
    return [Shape(**values) for values in json.loads(text)]


def main() -> None:
    parser = report.parser("Time single operators against MindSpore's own and PyTorch's.", "full")
    report.add_resolution(parser)
    parser.add_argument("--only", help="measure operators of this name only: layer_norm, attention, …")
    report.add_turns(parser)
    flags = parser.read()
    size = SIZES[flags["size"]]
    pixels = report.resolution(flags)
    every = shapes(size.config().model, pixels)
    selected = [shape for shape in every if flags["only"] in (None, shape.operator)]
    if not selected:
        known = ", ".join(dict.fromkeys(shape.operator for shape in every))
        raise UserError(f"--only {flags['only']} names no operator; known are {known}")
    text = to_json(selected)
    sides = {
        "ours": worker("benchmarks.operators_mindspore", "ours", text),
        "native": worker("benchmarks.operators_mindspore", "native", text),
        "bfloat16": worker("benchmarks.operators_mindspore", "bfloat16", text),
        "PyTorch": worker("benchmarks.operators_torch", text),
    }
    turns = report.turns(flags, size, rounds=20, pieces=1, warm_ups=20)
    measured = alternate(sides, **turns, together=True)
    title = f"Operators of {size.name} at {pixels} px, microseconds each, {LINKS} in a graph"
    report.answer(flags["json"], title, *show([str(shape) for shape in selected], measured))


def show(names: list[str], measured: dict[str, Measurement]) -> tuple[str, dict[str, Any]]:
    """Return the tables, one per pass, and all measurements."""
    results: dict[str, Any] = {
        side: {
            name: {
                direction: [answer["chains"][name][k] / LINKS for answer in m.answers]
                for k, direction in enumerate(_PASSES)
            }
            for name in names
        }
        for side, m in measured.items()
    }
    tables = []
    for direction in _PASSES:
        rows = []
        for name in names:
            ours, native, torch, half = (statistics.median(results[side][name][direction]) for side in _SIDES)
            times = (f"{1e6 * value:.4g}" for value in (ours, native, torch, half))
            rows.append([name, *times, f"{ours / native:.2f}", f"{ours / torch:.2f}", f"{half / ours:.2f}"])
        tables.append(report.table([direction, *_SIDES, "ours/native", "ours/PyTorch", "bfloat16/ours"], rows))
    return "\n\n".join(tables), {"seconds": results}


if __name__ == "__main__":
    cli.run(main)
