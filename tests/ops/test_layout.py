"""gm/ops/layout.py: conversions to sequences and back, in both layouts."""

from __future__ import annotations

import numpy as np
import pytest
from mindspore import Tensor

from gm.ops import layout
from tests.reference.inputs import normal


@pytest.mark.parametrize("n", [1, 2, 9])
def test_round_trip_of_images_and_tokens(n: int, layout_of: str) -> None:
    image = normal(1, n, 5, 3, 4)
    sequence = layout.from_image(Tensor(image), layout.swap_leading_axes())
    np.testing.assert_array_equal(layout.to_tokens(sequence).asnumpy(), image.reshape(n, 5, 12).transpose(0, 2, 1))
    np.testing.assert_array_equal(layout.to_image(sequence, layout.swap_leading_axes(), 3, 4).asnumpy(), image)
    tokens = normal(2, n, 6, 5)
    np.testing.assert_array_equal(layout.to_tokens(layout.from_tokens(Tensor(tokens))).asnumpy(), tokens)


def test_split_channels(layout_of: str) -> None:
    x = normal(1, 2, 6, 8)
    parts = layout.split_channels(layout.from_tokens(Tensor(x)), 2)
    for part, expected in zip(parts, (x[:, :, :4], x[:, :, 4:]), strict=True):
        np.testing.assert_array_equal(layout.to_tokens(part).asnumpy(), expected)
