"""Adjustment of embeddings beside a PyTorch restatement of its formula, and where it acts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from gm.embeddings.adjustment import adjust, adjusted_vectors, with_adjusted_copies
from gm.embeddings.embedding import LoadedEmbeddings, VectorAdjustment
from gm.text.tokenizer import Tokenizer
from tests.reference.inputs import relative_error


def by_pytorch(e: Tensor, c: Tensor, alpha: float, rho: float) -> Tensor:
    """Return one adjusted vector [width]."""
    n = (1 - alpha) * e.norm() + alpha * c.norm()
    e, c = n * e / e.norm(), n * c / c.norm()
    theta = torch.arccos(e @ c / n**2)
    return (torch.sin((1 - rho) * theta) * e + torch.sin(rho * theta) * c) / torch.sin(theta)


@pytest.mark.parametrize(("alpha", "rho"), [(0.5, 0.2), (0.0, 0.7), (1.0, 0.0), (1.0, 1.0)])
def test_adjusted_vectors_equal_the_formula(alpha: float, rho: float) -> None:
    random = np.random.default_rng()
    e, c = 9 * random.standard_normal((3, 64), np.float32), 0.4 * random.standard_normal((3, 64), np.float32)
    theirs = torch.stack([by_pytorch(*map(torch.from_numpy, pair), alpha, rho) for pair in zip(e, c, strict=True)])
    ours = adjust(e, c, alpha, rho)
    assert ours.dtype == np.float32
    assert relative_error(ours, theirs.numpy()) < 1e-5


def test_vectors_of_zeros_stay() -> None:
    ones = np.ones((1, 4), np.float32)
    assert not adjust(0 * ones, ones, 0.5, 0.2).any()
    assert np.array_equal(adjust(ones, 0 * ones, 0.5, 0.2), ones)


def test_each_vector_has_a_token_of_the_class_word_in_turn() -> None:
    tokenizer = Tokenizer()
    tokenizer.add_placeholder("<toy>", 3)
    tokenizer.add_placeholder("<hat>", 1)
    random = np.random.default_rng(0)
    table = random.standard_normal((10, 8), np.float32)
    vectors = {"clip_l": random.standard_normal((4, 8), np.float32), "clip_g": np.zeros((4, 8), np.float32)}
    adjustment = VectorAdjustment(slice(0, 3), (7, 5), 0.5, 0.2)
    loaded = LoadedEmbeddings(tokenizer, vectors, (adjustment,))
    copied = with_adjusted_copies(loaded, [("<toy>", "<toy>{a}", None), ("<hat>", "<hat>{b}", adjustment)])
    assert tokenizer.placeholders["<hat>{b}"] == (49415,)
    adjusted = adjusted_vectors(copied, ["clip_g", "clip_l"], lambda encoder, ids: table[list(ids)])
    before = vectors["clip_l"]
    expected = [adjust(before[:3], table[[7, 5, 7]], 0.5, 0.2), before[3:], before[:3]]
    expected.append(adjust(before[3:], table[[7]], 0.5, 0.2))
    assert np.array_equal(adjusted["clip_l"], np.concatenate(expected))
    assert adjusted["clip_g"].shape == (8, 8)
    assert not adjusted["clip_g"].any()  # of a file without vectors for this encoder
