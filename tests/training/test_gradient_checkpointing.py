"""Gradient checkpointing: the same numbers, in less memory, by another graph."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gm import api
from gm.runtime import compile_cache
from gm.training import setup, trainer
from gm.training.optimizer import create_train_state
from gm.training.train_step import TrainStep
from tests.onednn_operators import bfloat16_operators
from tests.project import Workshop

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def precision(request: pytest.FixtureRequest) -> Iterator[str]:
    """A precision, whose operators are there in the test alone."""
    with bfloat16_operators() if request.param == "bfloat16" else contextlib.nullcontext():
        yield request.param


@pytest.mark.parametrize("precision", ["float32", "bfloat16"], indirect=True)
@pytest.mark.parametrize("mode", [1, pytest.param(0, marks=pytest.mark.graph)], ids=["pynative", "graph"])
def test_trains_the_same(workshop: Workshop, mode: int, precision: str) -> None:
    found = []
    run = {"ms_mode": mode, "precision": precision}
    for recompute in (False, True):
        toolkit = api.load(workshop.config(run=run, training={"total_step": 3, "gradient_checkpointing": recompute}))
        marked = [cell for _, cell in toolkit.model.cells_and_names() if cell._recompute_cell is not None]
        # In the UNet three blocks on each of two levels and one in the middle; two layers in each encoder.
        assert len(marked) == (3 * 2 + 1 + 4 if recompute else 0)
        training = trainer.prepare(toolkit.model, setup.prepare(toolkit.config), toolkit.backend)
        losses = [result.loss for result in training.steps()]
        found.append((losses, np.concatenate([each.ravel() for each in training.state.vector_arrays().values()])))
    (losses, vectors), (same_losses, same_vectors) = found
    np.testing.assert_allclose(same_losses, losses, rtol=1e-6)
    np.testing.assert_allclose(same_vectors, vectors, rtol=1e-5, atol=1e-6)


def test_graph_is_another(workshop: Workshop, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GM_GRAPHS", str(tmp_path))
    toolkit = api.load(workshop.config())
    vectors = {"clip_l": np.zeros((2, 16), np.float32), "clip_g": np.zeros((2, 24), np.float32)}
    step = TrainStep(toolkit.model, create_train_state(vectors))
    before = compile_cache.cache_file(step, (), "")
    assert compile_cache.cache_file(step, (), "") == before
    toolkit.model.enable_gradient_checkpointing()
    assert compile_cache.cache_file(step, (), "") != before


@pytest.mark.e2e
def test_takes_less_memory_in_pynative_mode(workshop: Workshop) -> None:
    """A step of 128 px on the smallest model, whose attention keeps more than its weights."""
    code = f"""
from benchmarks.workers import Peak
from gm import api
from gm.training import setup, trainer
import sys
toolkit = api.load({str(workshop.yaml)!r}, data={{"resolution": 128}},
    training={{"gradient_checkpointing": sys.argv[1] == "yes"}})
run = trainer.prepare(toolkit.model, setup.prepare(toolkit.config), toolkit.backend)
toolkit.model.release_vae()
results = run.steps()
peak = Peak()
peak.reset()
before = peak.read()
next(results)
print(peak.read() - before)
"""
    taken = [
        int(
            subprocess.run(
                [sys.executable, "-c", code, word], cwd=ROOT, capture_output=True, text=True, check=True
            ).stdout
        )
        for word in ("no", "yes")
    ]
    assert taken[1] < 0.8 * taken[0]
