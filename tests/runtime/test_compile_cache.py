"""gm/runtime/compile_cache.py: which graphs are cached, and that no graph is mistaken for another."""

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

# Prints the results of Cells that differ in one number only, on which no shape depends.
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
for argument in sys.argv[1:]:
    times, length = map(int, argument.split("/"))
    print(float(backend.compile_cell(Power(times), True)(Tensor(np.ones((length, 3), np.float32)))))
"""


def run_process(folder: Path, cache: str, *arguments: str) -> list[float]:
    """Run PROCESS as a script in `folder`."""
    script = folder / "power.py"
    script.write_text(PROCESS)
    environment = {**os.environ, "GM_GRAPHS": cache, "PYTHONPATH": str(ROOT)}
    process = subprocess.run(
        [sys.executable, str(script), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return [float(line) for line in process.stdout.split()]


@pytest.mark.e2e
@pytest.mark.graph
def test_a_later_process_reads_the_right_graphs(tmp_path: Path) -> None:
    """In another order, with others in between, from another script: MindSpore's own cache fails in all these cases."""
    cache = tmp_path / "graphs"
    assert run_process(tmp_path, str(cache), "2/1", "3/1", "3/2") == [12.0, 24.0, 48.0]
    cached = {path: path.stat().st_ino for path in cache.glob("*.mindir")}
    assert len(cached) == 3
    (tmp_path / "another").mkdir()
    assert run_process(tmp_path / "another", str(cache), "3/2", "4/1", "2/1", "3/1") == [48.0, 48.0, 12.0, 24.0]
    # A graph that was read is not written again; the same script in another folder reads the same graphs.
    assert {path: path.stat().st_ino for path in cached} == cached
    assert len(list(cache.iterdir())) == 4


@pytest.mark.e2e
@pytest.mark.graph
def test_a_process_without_a_script_uses_the_cache(tmp_path: Path) -> None:
    """MindSpore's own cache fails with FileNotFoundError under `python -c`."""
    environment = {**os.environ, "GM_GRAPHS": str(tmp_path), "PYTHONPATH": str(ROOT)}
    # MindSpore reads the sources of the Cells in a graph, which `-c` has not: one of its own.
    code = (
        PROCESS[: PROCESS.index("class Power")]
        + """
backend.setup(RunConfig(device_target="CPU"))
print(backend.compile_cell(nn.ReLU(), True)(Tensor(np.array([-1, 2], np.float32))).asnumpy().tolist())
"""
    )
    command = [sys.executable, "-c", code]
    for _ in range(2):
        process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=True)
        assert process.stdout.split() == ["[0.0,", "2.0]"]
        assert len(list(tmp_path.glob("*.mindir"))) == 1


@pytest.mark.e2e
@pytest.mark.graph
def test_a_damaged_graph_is_compiled_again(tmp_path: Path) -> None:
    cache = tmp_path / "graphs"
    run_process(tmp_path, str(cache), "2/1", "3/1")
    whole = {path: path.read_bytes() for path in cache.iterdir()}
    cut, noise = sorted(whole)
    cut.write_bytes(whole[cut][: len(whole[cut]) // 2])
    noise.write_bytes(b"noise" * 100)
    assert run_process(tmp_path, str(cache), "2/1", "3/1") == [12.0, 24.0]
    assert {path: len(path.read_bytes()) for path in cache.iterdir()} == {p: len(b) for p, b in whole.items()}


@pytest.mark.e2e
@pytest.mark.graph
def test_an_unwritable_cache_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert run_process(tmp_path, str(tmp_path / "file"), "2/1") == [12.0]
    assert run_process(tmp_path, "", "2/1") == [12.0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "power.py"]


def step(config: ModelConfig, half: bool = False) -> TrainStep:
    vectors = {name: np.zeros((2, encoder.width), np.float32) for name, encoder in config.text_encoders.items()}
    return TrainStep(sdxl.build(config), create_train_state(vectors, half=half), half)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GM_GRAPHS", str(tmp_path))
    return tmp_path


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


@pytest.mark.graph
def test_pynative_mode_does_not_use_the_cache(cache: Path) -> None:
    """An equal Cell in graph mode, in PyNative mode, and in graph mode again."""

    def result(graph: bool) -> float:
        return float(backend.compile_cell(nn.ReLU6(), graph)(Tensor(np.full(3, 7.0, np.float32))).sum())

    assert result(graph=True) == 18.0
    (cached,) = cache.glob("*.mindir")
    cached.write_bytes(b"")
    assert result(graph=False) == 18.0
    assert cached.read_bytes() == b""
    assert result(graph=True) == 18.0
    assert cached.stat().st_size > 0


class Scale(nn.Cell):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def construct(self, x: Tensor) -> Tensor:
        return x * self.factor


class Uncompiled(nn.Cell):
    def __call__(self, x: Tensor) -> Tensor:
        return x


class Gather(nn.Cell):
    def construct(self, x: Tensor) -> Tensor:
        return ops.gather(x, Tensor(np.array([7], np.int32)), 0)


def run_graph(cell: nn.Cell) -> float:
    return float(backend.compile_cell(cell, graph=True)(Tensor(np.ones(3, np.float32))).sum())


@pytest.mark.graph
@pytest.mark.parametrize("between", ["a Cell that is compiled already", "a Cell that is not compiled", "a failure"])
def test_the_cache_works_after(between: str, cache: Path) -> None:
    """MindSpore numbers its files by compilations; the cache must not lose count."""
    doubled = Scale(2.0)
    assert run_graph(doubled) == 6.0
    if between == "a failure":
        with pytest.raises(RuntimeError, match="range"):
            run_graph(Gather())
    else:
        run_graph(doubled if "already" in between else Uncompiled())
    before = len(list(cache.glob("*.mindir")))
    assert [run_graph(Scale(3.0)), run_graph(Scale(5.0))] == [9.0, 15.0]
    written = {path: path.stat().st_ino for path in cache.glob("*.mindir")}  # a new file has a new inode
    assert len(written) == before + 2
    assert run_graph(Scale(5.0)) == 15.0
    assert {path: path.stat().st_ino for path in cache.glob("*.mindir")} == written
    assert not list(compile_cache._process_dir().rglob("*.mindir"))


class Refused(Scale):
    """A Cell whose cached graph the device refuses, such as after an update of its drivers."""

    def compile(self, *args: Tensor) -> None:
        number = self.attempts = getattr(self, "attempts", 0) + 1
        if number == 1:
            raise RuntimeError("no kernel\nfor this graph")
        super().compile(*args)


@pytest.mark.graph
def test_a_cached_graph_that_does_not_load_is_compiled_instead(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    refused, later = Refused(7.0), Scale(9.0)
    inputs = (Tensor(np.ones(3, np.float32)),)
    file = compile_cache.cache_file(refused, inputs, backend._target)
    assert file
    file.write_bytes(b"a graph of another driver")
    assert run_graph(refused) == 21.0
    assert caplog.messages == [f"the cached graph {file} does not load (no kernel): compiling instead"]
    assert [run_graph(later), run_graph(Scale(9.0))] == [27.0, 27.0]
    assert not list(compile_cache._process_dir().rglob("*.mindir"))


@pytest.mark.graph
def test_files_of_ascends_back_end_are_not_taken_for_graphs(cache: Path) -> None:
    folder = compile_cache._process_dir() / "rank_0" / "graph_cache"
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / "backend_compile_cache_0.mindir"
    beside.write_text("a kernel graph")
    try:
        assert run_graph(Scale(11.0)) == 33.0
        assert [path.read_bytes() for path in cache.iterdir()] != [b"a kernel graph"]
        assert len(list(cache.iterdir())) == 1
    finally:
        beside.unlink()
