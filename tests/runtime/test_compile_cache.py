"""gm/runtime/compile_cache.py: what is kept, what it is found by, and that nothing else is ever found."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from gm.config import TrainingConfig
from gm.config.model import ModelConfig
from gm.models import sdxl
from gm.runtime import backend, compile_cache
from gm.training.optimizer import create_optimizer, create_train_state
from gm.training.train_step import TrainStep
from tests.reference.configs import LIKE_BASE

ROOT = Path(__file__).resolve().parents[2]

# Prints what each Cell asked for computes; every one is the same but for one number that no shape shows.
PROCESS = """
import sys
import numpy as np
from mindspore import Parameter, Tensor, nn
from gm.config import RunConfig
from gm.runtime import backend

class Power(nn.Cell):
    def __init__(self, times):
        super().__init__()
        self.times, self.weight = times, Parameter(Tensor(np.full(3, 2.0, np.float32)), name="weight")

    def construct(self, x):
        for _ in range(self.times):
            x = x * self.weight
        return x.sum()

backend.setup(RunConfig(device_target="CPU"))
for asked in sys.argv[1:]:
    times, length = map(int, asked.split("/"))
    print(float(backend.compile_cell(Power(times), True)(Tensor(np.ones((length, 3), np.float32)))))
"""


def process(folder: Path, home: str, *asked: str) -> list[float]:
    """Run PROCESS as a script in `folder`."""
    script = folder / "power.py"
    script.write_text(PROCESS)
    environment = {**os.environ, "GM_GRAPHS": home, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(script), *asked], env=environment, capture_output=True, text=True, timeout=300, check=True
    )
    return [float(line) for line in done.stdout.split()]


def test_a_later_process_finds_each_graph_and_no_other(tmp_path: Path) -> None:
    """In another order, with others between, from another script: MindSpore's own cache fails at all of these."""
    home = tmp_path / "graphs"
    assert process(tmp_path, str(home), "2/1", "3/1", "3/2") == [12.0, 24.0, 48.0]
    kept = {path: path.stat().st_ino for path in home.glob("*.mindir")}
    assert len(kept) == 3
    (tmp_path / "another").mkdir()
    assert process(tmp_path / "another", str(home), "3/2", "4/1", "2/1", "3/1") == [48.0, 48.0, 12.0, 24.0]
    # A graph that is used is not written again; a script of other text has other graphs.
    assert {path: path.stat().st_ino for path in kept} == kept
    assert len(list(home.iterdir())) == 4


def test_a_damaged_graph_is_compiled_again(tmp_path: Path) -> None:
    home = tmp_path / "graphs"
    process(tmp_path, str(home), "2/1", "3/1")
    whole = {path: path.read_bytes() for path in home.iterdir()}
    cut, noise = sorted(whole)
    cut.write_bytes(whole[cut][: len(whole[cut]) // 2])
    noise.write_bytes(b"noise" * 100)
    assert process(tmp_path, str(home), "2/1", "3/1") == [12.0, 24.0]
    assert {path: len(path.read_bytes()) for path in home.iterdir()} == {p: len(b) for p, b in whole.items()}


def test_a_home_that_cannot_be_written_to_costs_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert process(tmp_path, str(tmp_path / "file"), "2/1") == [12.0]
    assert process(tmp_path, "", "2/1") == [12.0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "power.py"]


def step(config: ModelConfig, half: bool = False) -> TrainStep:
    vectors = {name: np.zeros((2, encoder.width), np.float32) for name, encoder in config.text_encoders.items()}
    return TrainStep(sdxl.build(config), create_train_state(vectors, half=half), half)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GM_GRAPHS", str(tmp_path))
    return tmp_path


def test_whatever_changes_a_graph_changes_its_place(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = (Tensor(np.zeros((2, 3), np.float32)),)
    base = compile_cache.cache_file(step(LIKE_BASE), inputs, (False, 1))
    assert base is not None
    assert base.parent == home
    assert base == compile_cache.cache_file(step(LIKE_BASE), inputs, (False, 1))
    unet, encoder, vae = LIKE_BASE.unet, LIKE_BASE.text_encoder_1, LIKE_BASE.vae
    narrow = step(LIKE_BASE)
    narrow.loss.unet.time_embed[0].weight.set_dtype(ms.float16)
    others = [
        compile_cache.cache_file(step(replace(LIKE_BASE, unet=replace(unet, num_head_channels=8))), inputs, (False, 1)),
        compile_cache.cache_file(step(replace(LIKE_BASE, unet=replace(unet, norm_num_groups=16))), inputs, (False, 1)),
        compile_cache.cache_file(
            step(replace(LIKE_BASE, text_encoder_1=replace(encoder, heads=2))), inputs, (False, 1)
        ),
        compile_cache.cache_file(step(LIKE_BASE, half=True), inputs, (False, 1)),
        compile_cache.cache_file(step(LIKE_BASE), (Tensor(np.zeros((1, 3), np.float32)),), (False, 1)),
        compile_cache.cache_file(step(LIKE_BASE), (Tensor(np.zeros((2, 3), np.float16)),), (False, 1)),
        compile_cache.cache_file(
            step(replace(LIKE_BASE, text_encoder_1=replace(encoder, vocabulary=49409))), inputs, (False, 1)
        ),
        compile_cache.cache_file(narrow, inputs, (False, 1)),
        compile_cache.cache_file(step(LIKE_BASE), inputs, (True, 1)),
        compile_cache.cache_file(step(LIKE_BASE), inputs, (False, 2)),
    ]
    monkeypatch.setattr(ms, "__version__", "2.7.1")
    others.append(compile_cache.cache_file(step(LIKE_BASE), inputs, (False, 1)))
    monkeypatch.undo()
    monkeypatch.setenv("GM_GRAPHS", str(home))
    monkeypatch.setattr(compile_cache, "_sources", lambda modules: "edited")
    others.append(compile_cache.cache_file(step(LIKE_BASE), inputs, (False, 1)))
    assert None not in others
    assert len({base, *others}) == 1 + len(others)
    # What no graph of the step depends on.
    monkeypatch.undo()
    monkeypatch.setenv("GM_GRAPHS", str(home))
    same = replace(LIKE_BASE, version="renamed", vae=replace(vae, channels=32))
    assert compile_cache.cache_file(step(same), inputs, (False, 1)) == base


def test_options_that_a_graph_holds_as_numbers_are_told_apart(home: Path) -> None:
    def place(**options: float) -> Path | None:
        state = create_train_state({name: np.zeros((2, 4), np.float32) for name in ("clip_l", "clip_g")})
        optimizer = create_optimizer(state, replace(TrainingConfig(), **options))
        return compile_cache.cache_file(optimizer, (), (False, 1))

    options = [{}, {"adam_beta1": 0.8}, {"adam_epsilon": 1e-6}, {"weight_decay": 0.1}, {"max_grad_norm": 0.0}]
    assert len({place(**given) for given in options}) == len(options)
    assert place(total_step=7) == place()


def test_constants_are_told_apart_by_what_they_are(home: Path) -> None:
    class Constant(nn.Cell):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.constant, self.product = Tensor(np.full(3, value, np.float32)), ops.MatMul(transpose_b=value > 1)

    assert compile_cache.cache_file(Constant(1.0), (), ()) == compile_cache.cache_file(Constant(1.0), (), ())
    assert len({compile_cache.cache_file(Constant(value), (), ()) for value in (0.5, 1.0, 2.0)}) == 3


def test_what_cannot_be_described_is_not_kept(home: Path) -> None:
    cell = nn.ReLU()
    assert compile_cache.cache_file(cell, (), ()) is not None
    cell.something = object()
    assert compile_cache.cache_file(cell, (), ()) is None


def test_the_oldest_go_when_there_are_too_many(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_cache, "_MOST", 2)
    for age, name in enumerate(("c", "b", "a")):
        (home / f"{name}.mindir").write_text("x")
        os.utime(home / f"{name}.mindir", (1000 - age, 1000 - age))
    fresh = home / "fresh"
    fresh.write_text("x")
    compile_cache._keep(fresh, home / "d.mindir")
    assert sorted(path.name for path in home.glob("*.mindir")) == ["c.mindir", "d.mindir"]


def test_the_home_is_the_users_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("GM_GRAPHS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert compile_cache.cache_dir() == tmp_path / "sdxl-textual-inversion" / "graphs"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert compile_cache.cache_dir() == tmp_path / ".cache" / "sdxl-textual-inversion" / "graphs"


def test_pynative_mode_reads_and_keeps_nothing(home: Path) -> None:
    """The same Cell in a graph, by itself, and in a graph again, of the same kind as the first."""

    def computed(graph: bool) -> float:
        return float(backend.compile_cell(nn.ReLU6(), graph)(Tensor(np.full(3, 7.0, np.float32))).sum())

    assert computed(graph=True) == 18.0
    (kept,) = home.glob("*.mindir")
    kept.write_bytes(b"")
    assert computed(graph=False) == 18.0
    assert kept.read_bytes() == b""
    assert computed(graph=True) == 18.0
    assert kept.stat().st_size > 0
