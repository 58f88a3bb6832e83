"""gm/models/heads.py: attention heads that are padded for Ascend's kernel, through stand-ins for it."""

from __future__ import annotations

from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from gm.checkpoints import loading
from gm.checkpoints.key_mapping import parameter_shapes
from gm.models import heads, stable_diffusion
from gm.models.layers import parameter
from gm.models.spatial_transformer import SpatialTransformer
from gm.models.stable_diffusion import StableDiffusion
from gm.ops import layout
from gm.runtime import backend
from tests.ops.stand_ins import StandIns
from tests.reference import inputs
from tests.reference.case import Case
from tests.reference.inputs import normal, relative_error

pytestmark = pytest.mark.reference

CASES = ("reversed", "like-base", "small-sd1", "like-sd2")


def outputs(model: StableDiffusion) -> list[np.ndarray]:
    """Return the hidden states of two prompts, and the output of the UNet's first transformer block."""
    config = model.config
    prompts = inputs.prompts(config, seed=5)
    ids = [prompts.ids_1, prompts.ids_2][: len(config.text_encoders)]
    vectors = [prompts.clip_l, prompts.clip_g][: len(config.text_encoders)]
    conditioning = Tensor(prompts.pool_position), Tensor(prompts.sizes)
    states, _ = model.conditioner(tuple(map(Tensor, ids)), tuple(map(Tensor, vectors)), *conditioning)
    block = next(cell for _, cell in model.unet.cells_and_names() if isinstance(cell, SpatialTransformer))
    block = block.transformer_blocks[0]
    x = Tensor(normal(8, 2, 10, *block.norm1.gamma.shape), states.dtype)
    key, value = block.attn2.project_context(layout.from_tokens(Tensor(normal(6, *states.shape), states.dtype)))
    out = layout.to_tokens(block(layout.from_tokens(x), key, value))
    return [each.astype(ms.float32).asnumpy() for each in (states, out)]


@pytest.mark.parametrize("name", CASES)
def test_padded_heads_change_nothing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(name, tmp_path)
    expected = outputs(case.model)
    stand_ins = StandIns(monkeypatch.setattr)
    monkeypatch.setattr(backend, "_on_ascend", True)
    monkeypatch.setattr(backend, "_flash_attention", "on")
    model = stable_diffusion.build(case.config, ms.float16)
    assert parameter_shapes(model) == parameter_shapes(case.model)
    assert sum(p.size for p in model.get_parameters()) > sum(p.size for p in case.model.get_parameters())
    loading.load_weights(model, case.path, case.config)
    for ours, exact in zip(outputs(model), expected, strict=True):
        assert relative_error(ours, exact) < 5e-3  # of float16
    assert stand_ins.calls.count("flash_attention_score") > 2


def test_weights_in_bfloat16_are_padded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("small-sd1", tmp_path)
    monkeypatch.setattr(backend, "_on_ascend", True)
    monkeypatch.setattr(backend, "_flash_attention", "auto")
    model = stable_diffusion.build(case.config, ms.bfloat16)
    loading.load_weights(model, case.path, case.config)
    exact = {p.name: p.asnumpy() for p in case.model.get_parameters()}
    padded = [p for p in model.get_parameters() if tuple(p.shape) != heads.published_shape(p)]
    for each in padded:
        values = each.astype(ms.float32).asnumpy()
        assert np.abs(values).sum() == pytest.approx(np.abs(exact[each.name]).sum(), rel=1e-2)
    assert padded


def test_the_channels_of_a_head_stay_together() -> None:
    split = heads.Heads(count=2, width=3, padded=4)
    values = np.arange(1, 13, dtype=np.float32).reshape(2, 6)
    columns = parameter((2, 8), ms.float32, "columns")
    heads.pad(columns, split, axis=1)
    assert heads.published_shape(columns) == (2, 6)
    expected = [[1, 2, 3, 0, 4, 5, 6, 0], [7, 8, 9, 0, 10, 11, 12, 0]]
    np.testing.assert_array_equal(heads.padded(columns, values), expected)
    # Query, key and value one below the other.
    rows = parameter((24,), ms.float32, "rows")
    heads.pad(rows, split, axis=0, projections=3)
    assert heads.published_shape(rows) == (18,)
    assert heads.padded(rows, np.ones(18)).tolist() == [1, 1, 1, 0] * 6


def test_heads_are_padded_for_flash_attention_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert heads.split(120, 3, ms.float16) == heads.Heads(3, 40, 40)
    monkeypatch.setattr(backend, "_on_ascend", True)
    for flash, dtype, padded in (
        ("auto", ms.float16, 48),
        ("on", ms.bfloat16, 48),
        ("auto", ms.float32, 40),
        ("off", ms.float16, 40),
    ):
        monkeypatch.setattr(backend, "_flash_attention", flash)
        assert heads.split(120, 3, dtype) == heads.Heads(3, 40, padded)
    monkeypatch.setattr(backend, "_flash_attention", "auto")
    assert heads.split(600, 1, ms.float16).padded == 600  # more than the kernel takes
