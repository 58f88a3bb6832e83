"""Cost of a training step and a sampling step: FLOPs, and bytes of weights, of saved activations and moved.

A training step is the text encoders and the UNet, forward and backward to the embedding vectors; the images are
encoded before. A sampling step is the UNet for the prompt and the negative prompt at once.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks import networks
from benchmarks.counting import Block, Part
from gm.config.model import ModelConfig

ITEMSIZE = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Cost:
    """FLOPs of the forward and the backward pass, and bytes.

    `moved` is what products read and write, their weights included, in both directions; what lies between them is
    taken to be fused. `largest` is the most that one product reads and writes.
    """

    forward: int = 0
    backward: int = 0
    weights: int = 0
    saved: int = 0
    moved: int = 0
    largest: int = 0

    @property
    def flops(self) -> int:
        return self.forward + self.backward

    @property
    def memory(self) -> int:
        """Lower bound of the bytes in use at once: weights, saved activations and the largest product."""
        return self.weights + self.saved + self.largest


def training(
    config: ModelConfig, pixels: int, batch: int, precision: str, flash: bool = False, recompute: bool = False
) -> dict[str, Cost]:
    """Return the cost of a training step, by network.

    `recompute` saves only the input of every residual, transformer and text block; computing the block again is
    counted in the backward pass.
    """
    side = (pixels // config.vae.downsample_factor,) * 2
    blocks = {
        **networks.text_encoders(config, batch, flash),
        "UNet": networks.unet(config.unet, batch, side, config.context_length, flash),
    }
    return {name: _cost(each, precision, True, recompute) for name, each in blocks.items()}


def sampling(config: ModelConfig, pixels: int, batch: int, precision: str, flash: bool = False) -> dict[str, Cost]:
    """Return the cost of a sampling step with guidance ("UNet"), and of encoders and decoder once per image."""
    side = (pixels // config.vae.downsample_factor,) * 2
    blocks = {
        "UNet": networks.unet(config.unet, 2 * batch, side, config.context_length, flash),
        # Each encoder runs for the prompt and for the negative prompt.
        **networks.text_encoders(config, 2 * batch, flash),
    }
    costs = {name: _cost(each, precision, False, False) for name, each in blocks.items()}
    decoder = networks.vae_decoder(config.vae, batch, side)
    return {**costs, "decoder": _cost(decoder, "float32", False, False)}


def encoding(config: ModelConfig, pixels: int) -> Cost:
    """Return the cost of encoding one image, in float32."""
    return _cost(networks.vae_encoder(config.vae, 1, (pixels, pixels)), "float32", False, False)


def total(costs: dict[str, Cost]) -> Cost:
    """Return the cost of all networks together."""
    every = list(costs.values())
    sums = {f: sum(getattr(c, f) for c in every) for f in ("forward", "backward", "weights", "saved", "moved")}
    return Cost(**sums, largest=max(c.largest for c in every))


def _cost(blocks: list[Block], precision: str, backward_pass: bool, recompute: bool) -> Cost:
    size = ITEMSIZE[precision]
    parts = [part for block in blocks for part in block.parts]
    moved = [part.moved * size + _weights(part, size) if part.flops else 0 for part in parts]
    cost = {
        "forward": sum(part.flops for part in parts),
        "weights": sum(_weights(part, size) for part in parts),
        "moved": sum(moved),
        "largest": max(part.moved * size for part in parts),
    }
    if not backward_pass:
        return Cost(**cost)
    backward = sum(part.backward for part in parts)
    saved = sum(_saved(part, precision) for part in parts)
    # In the backward pass a product of two activations becomes two products, one with a frozen weight becomes one.
    cost["moved"] += sum(
        m * round(part.backward / part.flops) for m, part in zip(moved, parts, strict=True) if part.flops
    )
    again = [block for block in blocks if block.inputs]
    if recompute and again:
        each = [sum(_saved(part, precision) for part in block.parts) for block in again]
        saved += sum(block.inputs * size for block in again) + max(each) - sum(each)
        backward += sum(block.flops for block in again)
        inside = [part for block in again for part in block.parts if part.flops]
        cost["moved"] += sum(part.moved * size + _weights(part, size) for part in inside)
    return Cost(**cost, backward=backward, saved=saved)


def _weights(part: Part, size: int) -> int:
    return part.weights * size + part.weights_float32 * 4


def _saved(part: Part, precision: str) -> int:
    half = ITEMSIZE[precision] == 2
    return part.saved * ITEMSIZE[precision] + part.saved_float32 * 4 + (part.saved_if_half * 2 if half else 0)
