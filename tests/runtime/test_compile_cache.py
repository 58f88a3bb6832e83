"""gm/runtime/compile_cache.py: the file of a graph, and the folder of the cache."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from gm.config import TrainingConfig
from gm.config.model import ModelConfig
from gm.models import stable_diffusion
from gm.runtime import compile_cache
from gm.training.optimizer import create_optimizer, create_train_state
from gm.training.train_step import TrainStep
from tests.reference.configs import LIKE_BASE


def step(config: ModelConfig, half: bool = False) -> TrainStep:
    vectors = {name: np.zeros((2, encoder.width), np.float32) for name, encoder in config.text_encoders.items()}
    return TrainStep(stable_diffusion.build(config), create_train_state(vectors, half=half), half)


def test_everything_that_a_graph_depends_on_changes_its_file(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def file(
        cell: TrainStep, shape: tuple[int, ...] = (2, 3), dtype: type = np.float32, target: tuple = (False, 1)
    ) -> Path | None:
        return compile_cache.cache_file(cell, (Tensor(np.zeros(shape, dtype)),), target)

    base = file(step(LIKE_BASE))
    assert base is not None
    assert base.parent == cache
    assert base == file(step(LIKE_BASE))
    unet, encoder, vae = LIKE_BASE.unet, LIKE_BASE.text_encoder_1, LIKE_BASE.vae
    half_weight = step(LIKE_BASE)
    half_weight.loss.unet.time_embed[0].weight.set_dtype(ms.float16)
    others = [
        file(step(replace(LIKE_BASE, unet=replace(unet, num_head_channels=8)))),
        file(step(replace(LIKE_BASE, unet=replace(unet, norm_num_groups=16)))),
        file(step(replace(LIKE_BASE, text_encoder_1=replace(encoder, heads=2)))),
        file(step(replace(LIKE_BASE, text_encoder_1=replace(encoder, vocab_size=49409)))),
        file(step(LIKE_BASE, half=True)),
        file(step(LIKE_BASE), shape=(1, 3)),
        file(step(LIKE_BASE), dtype=np.float16),
        file(half_weight),
        file(step(LIKE_BASE), target=(True, 1)),
        file(step(LIKE_BASE), target=(False, 2)),
    ]
    monkeypatch.setattr(ms, "__version__", "2.7.1")
    others.append(file(step(LIKE_BASE)))
    monkeypatch.undo()
    monkeypatch.setenv("GM_GRAPHS", str(cache))
    monkeypatch.setattr(compile_cache, "_hash_sources", lambda modules: "edited")
    others.append(file(step(LIKE_BASE)))
    assert None not in others
    assert len({base, *others}) == 1 + len(others)
    # Changes that the graph of a training step does not depend on.
    monkeypatch.undo()
    monkeypatch.setenv("GM_GRAPHS", str(cache))
    assert file(step(replace(LIKE_BASE, version="renamed", vae=replace(vae, channels=32)))) == base


def test_options_that_are_constants_of_a_graph_change_its_file(cache: Path) -> None:
    def file(**options: float) -> Path | None:
        state = create_train_state({name: np.zeros((2, 4), np.float32) for name in ("clip_l", "clip_g")})
        optimizer = create_optimizer(state, replace(TrainingConfig(), **options))
        return compile_cache.cache_file(optimizer, (), (False, 1))

    options = [{}, {"adam_beta1": 0.8}, {"adam_epsilon": 1e-6}, {"weight_decay": 0.1}, {"max_grad_norm": 0.0}]
    assert len({file(**changed) for changed in options}) == len(options)
    assert file(total_step=7) == file()


def test_the_values_of_constants_change_the_file(cache: Path) -> None:
    class Constant(nn.Cell):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.constant, self.product = Tensor(np.full(3, value, np.float32)), ops.MatMul(transpose_b=value > 1)

    assert compile_cache.cache_file(Constant(1.0), (), ()) == compile_cache.cache_file(Constant(1.0), (), ())
    assert len({compile_cache.cache_file(Constant(value), (), ()) for value in (0.5, 1.0, 2.0)}) == 3


def test_a_cell_without_a_stable_description_is_not_cached(cache: Path) -> None:
    cell = nn.ReLU()
    assert compile_cache.cache_file(cell, (), ()) is not None
    cell.something = object()
    assert compile_cache.cache_file(cell, (), ()) is None


def test_the_least_recently_used_graphs_are_deleted(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_cache, "_MAX_GRAPHS", 2)
    for age, name in enumerate(("c", "b", "a")):
        (cache / f"{name}.mindir").write_text("x")
        os.utime(cache / f"{name}.mindir", (1000 - age, 1000 - age))
    new = cache / "new"
    new.write_text("x")
    compile_cache._store(new, cache / "d.mindir")
    assert sorted(path.name for path in cache.glob("*.mindir")) == ["c.mindir", "d.mindir"]


def test_the_cache_is_in_the_users_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("GM_GRAPHS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert compile_cache.cache_dir() == tmp_path / "sdxl-textual-inversion" / "graphs"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert compile_cache.cache_dir() == tmp_path / ".cache" / "sdxl-textual-inversion" / "graphs"
