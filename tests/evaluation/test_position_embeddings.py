"""Interpolation of position embeddings against PyTorch's bicubic one."""

from __future__ import annotations

import numpy as np
import pytest

from gm.checkpoints.lazy_tensor import in_memory
from gm.evaluation.position_embeddings import resized
from tests.reference.inputs import relative_error


@pytest.mark.parametrize(("old", "new"), [(37, 16), (5, 3), (3, 7), (1, 4), (14, 24)])
def test_interpolation_is_pytorchs(old: int, new: int) -> None:
    import torch

    table = np.random.default_rng(old).normal(size=(1, 1 + old * old, 6)).astype(np.float32)
    square = torch.tensor(table[:, 1:].reshape(1, old, old, 6)).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(square, size=(new, new), mode="bicubic", align_corners=False)
    ours = resized(in_memory(table), new)
    assert ours.shape == (1, 1 + new * new, 6)
    assert np.array_equal(ours.read()[:, :1], table[:, :1])
    assert relative_error(ours.read()[0, 1:], expected[0].permute(1, 2, 0).reshape(-1, 6).numpy()) < 1e-6


def test_table_for_as_many_patches_or_for_no_square_stays() -> None:
    for count, grid in ((10, 3), (11, 4), (1, 4)):
        table = in_memory(np.zeros((count, 6), np.float32))
        assert resized(table, grid) is table
