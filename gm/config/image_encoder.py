"""Architecture of the image encoders that compare images: CLIP's, DINO's and DINOv2's; fields follow their config.json.

They are vision transformers (Dosovitskiy et al., 2021). The numbers come from the published files, not from options.
"""

from __future__ import annotations

from dataclasses import dataclass

from gm.config.networks import TextEncoderConfig


@dataclass(frozen=True)
class ImageEncoderConfig:
    """Vision transformer over the patches of an image, with a class token in front.

    width: of a hidden state; the feed-forward networks are four times as wide
    patch_size: side of a patch in pixels
    grid: patches along a side of the images that it gets
    epsilon: of the layer normalisations
    layer_scale: each residual branch is multiplied by trained numbers, one a channel (DINOv2)
    """

    width: int
    layers: int
    heads: int
    patch_size: int
    grid: int
    epsilon: float = 1e-5
    layer_scale: bool = False

    @property
    def image_size(self) -> int:
        """Side of the images that it gets, in pixels."""
        return self.grid * self.patch_size

    @property
    def num_positions(self) -> int:
        """Tokens of an image: its patches and the class token."""
        return self.grid**2 + 1


@dataclass(frozen=True)
class CLIPConfig:
    """CLIP (Radford et al., 2021): an image and a text encoder whose outputs are projected to `projection` values."""

    image: ImageEncoderConfig
    text: TextEncoderConfig
    projection: int
