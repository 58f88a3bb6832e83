"""Images as tokens: the first layer of a vision transformer (Dosovitskiy et al., 2021)."""

from __future__ import annotations

from mindspore import Tensor, nn, ops

from gm import ops as gm_ops
from gm.config.image_encoder import ImageEncoderConfig
from gm.models.layers import parameter
from gm.ops import layout
from gm.runtime.backend import DType


class PatchEmbedding(nn.Cell):
    """Affine map of every patch: pixels [N, 3, H, W] → tokens [N, patches, width], row by row.

    The weight [width, 3, p, p] is that of a convolution whose stride is its kernel, which is a matrix product.
    """

    def __init__(self, config: ImageEncoderConfig, dtype: DType, bias: bool) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.weight = parameter((config.width, 3, config.patch_size, config.patch_size), dtype, "weight")
        self.bias = parameter((config.width,), dtype, "bias") if bias else None
        self.project = gm_ops.projection()

    def construct(self, pixels: Tensor) -> Tensor:
        n, channels, height, width = pixels.shape
        p = self.patch_size
        patches = pixels.reshape((n, channels, height // p, p, width // p, p)).transpose((0, 2, 4, 1, 3, 5))
        tokens = layout.from_tokens(patches.reshape((n, -1, channels * p * p)))
        weight = self.weight.reshape((self.weight.shape[0], -1))
        return layout.to_tokens(self.project(tokens, weight, self.bias))


def prepend_class_token(tokens: Tensor, class_token: Tensor) -> Tensor:
    """Return tokens [N, L + 1, width]: the class token, [width] or [1, 1, width], before each image's L tokens."""
    n, _, width = tokens.shape
    first = class_token.reshape((1, 1, width)).broadcast_to((n, 1, width))
    return ops.concat((first, tokens), axis=1)
