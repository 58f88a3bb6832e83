"""A training step and a sampling step of any model: FLOPs; bytes of weights, kept for the backward pass, moved.

A training step is both text encoders and the UNet, forward and back to the learned rows; the autoencoder has encoded
the images before. A sampling step is the UNet for the prompt and for nothing at once.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks import networks
from benchmarks.counting import Block, Part
from gm.config.model import ModelConfig

ITEMSIZE = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Cost:
    """FLOPs forward and in the backward pass, and bytes.

    `moved` is what products read and write, their weights included, in both directions; what lies between them is
    taken to be fused. `largest` is the most that one product reads and writes.
    """

    forward: int = 0
    backward: int = 0
    weights: int = 0
    kept: int = 0
    moved: int = 0
    largest: int = 0

    @property
    def flops(self) -> int:
        return self.forward + self.backward

    @property
    def memory(self) -> int:
        """Bytes that are there at once, at least: weights, what is kept, and the largest product's."""
        return self.weights + self.kept + self.largest


def training(
    config: ModelConfig, pixels: int, batch: int, precision: str, flash: bool = False, recompute: bool = False
) -> dict[str, Cost]:
    """Return the cost of a training step, by network.

    `recompute` keeps only the input of every residual, transformer and text block, and computes the block once more on
    the way back, as part of which that is counted.
    """
    side = (pixels // config.vae.downsample_factor,) * 2
    tokens = config.text_encoder_1.positions
    blocks = {
        "encoder 1": networks.text_encoder_1(config.text_encoder_1, batch, flash),
        "encoder 2": networks.text_encoder_2(config.text_encoder_2, batch, flash),
        "UNet": networks.unet(config.unet, batch, side, tokens, flash),
    }
    return {name: _cost(each, precision, True, recompute) for name, each in blocks.items()}


def sampling(config: ModelConfig, pixels: int, batch: int, precision: str, flash: bool = False) -> dict[str, Cost]:
    """Return the cost of a sampling step with guidance ("UNet") and of what is done once an image."""
    side = (pixels // config.vae.downsample_factor,) * 2
    tokens = config.text_encoder_1.positions
    blocks = {
        "UNet": networks.unet(config.unet, 2 * batch, side, tokens, flash),
        # Each encoder runs twice: for the prompt, and for the sizes of the unconditional side.
        "encoder 1": networks.text_encoder_1(config.text_encoder_1, 2 * batch, flash),
        "encoder 2": networks.text_encoder_2(config.text_encoder_2, 2 * batch, flash),
    }
    costs = {name: _cost(each, precision, False, False) for name, each in blocks.items()}
    decoder = networks.autoencoder_decoder(config.vae, batch, side)
    return {**costs, "decoder": _cost(decoder, "float32", False, False)}


def encoding(config: ModelConfig, pixels: int) -> Cost:
    """Return the cost of encoding one image, in float32."""
    return _cost(networks.autoencoder_encoder(config.vae, 1, (pixels, pixels)), "float32", False, False)


def total(costs: dict[str, Cost]) -> Cost:
    """Return the cost of all networks together."""
    every = list(costs.values())
    sums = {f: sum(getattr(c, f) for c in every) for f in ("forward", "backward", "weights", "kept", "moved")}
    return Cost(**sums, largest=max(c.largest for c in every))


def _cost(blocks: list[Block], precision: str, back: bool, recompute: bool) -> Cost:
    size = ITEMSIZE[precision]
    parts = [part for block in blocks for part in block.parts]
    moved = [part.moved * size + _weights(part, size) if part.flops else 0 for part in parts]
    cost = {
        "forward": sum(part.flops for part in parts),
        "weights": sum(_weights(part, size) for part in parts),
        "moved": sum(moved),
        "largest": max(part.moved * size for part in parts),
    }
    if not back:
        return Cost(**cost)
    backward, kept = sum(part.back for part in parts), sum(_kept(part, precision) for part in parts)
    # On the way back a product of two activations is two products; a frozen weight's is one.
    cost["moved"] += sum(m * round(part.back / part.flops) for m, part in zip(moved, parts, strict=True) if part.flops)
    again = [block for block in blocks if block.inputs]
    if recompute and again:
        each = [sum(_kept(part, precision) for part in block.parts) for block in again]
        kept += sum(block.inputs * size for block in again) + max(each) - sum(each)
        backward += sum(block.flops for block in again)
        inside = [part for block in again for part in block.parts if part.flops]
        cost["moved"] += sum(part.moved * size + _weights(part, size) for part in inside)
    return Cost(**cost, backward=backward, kept=kept)


def _weights(part: Part, size: int) -> int:
    return part.weights * size + part.weights_float32 * 4


def _kept(part: Part, precision: str) -> int:
    half = ITEMSIZE[precision] == 2
    return part.kept * ITEMSIZE[precision] + part.kept_float32 * 4 + (part.kept_if_half * 2 if half else 0)
