"""gm/runtime/compile_cache.py: cached graphs are used again, and none is mistaken for another."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from gm.runtime import backend, compile_cache
from tools.ascend_dryrun import stand_ins

ROOT = Path(__file__).resolve().parents[2]
WITHOUT_OPERATORS = {"DNNLROOT": "/nowhere"}  # no operators over oneDNN: compiling them takes longer than the test

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
    environment = {**os.environ, "GM_GRAPHS": cache, "PYTHONPATH": str(ROOT), **WITHOUT_OPERATORS}
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
    assert len(list(cache.glob("*.mindir"))) == 4


@pytest.mark.e2e
@pytest.mark.graph
def test_a_process_without_a_script_uses_the_cache(tmp_path: Path) -> None:
    """MindSpore's own cache fails with FileNotFoundError under `python -c`."""
    environment = {**os.environ, "GM_GRAPHS": str(tmp_path), "PYTHONPATH": str(ROOT), **WITHOUT_OPERATORS}
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
    whole = {path: path.read_bytes() for path in cache.glob("*.mindir")}
    cut, noise = sorted(whole)
    cut.write_bytes(whole[cut][: len(whole[cut]) // 2])
    noise.write_bytes(b"noise" * 100)
    assert run_process(tmp_path, str(cache), "2/1", "3/1") == [12.0, 24.0]
    assert {path: len(path.read_bytes()) for path in cache.glob("*.mindir")} == {p: len(b) for p, b in whole.items()}


@pytest.mark.e2e
@pytest.mark.graph
def test_an_unwritable_cache_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert run_process(tmp_path, str(tmp_path / "file"), "2/1") == [12.0]
    assert run_process(tmp_path, "", "2/1") == [12.0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "power.py"]


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


ASCEND = """
import os, sys
import numpy as np
from mindspore import Tensor, nn
from gm.config import RunConfig
from gm.runtime import backend, compile_cache

class Twice(nn.Cell):
    def construct(self, x):
        return (x * 2).sum()

backend.setup(RunConfig(device_target="Ascend", jit_level=sys.argv[1], max_device_memory="4GB"))
x = Tensor(np.ones((2, 3), np.float16))
cached = compile_cache.cache_file(Twice(), (x,), backend._target).exists()
backend.compile_cell(Twice(), True)(x)
print("cached" if cached else "compiled", *(path.name for path in compile_cache._process_dir().rglob("*.mindir")))
sys.stdout.flush()
os._exit(0)  # nothing has computed: there is no card
"""


@pytest.mark.e2e
@pytest.mark.graph
def test_ascend_caches_the_graph_of_the_front_end_alone(tmp_path: Path) -> None:
    """Compiled for Ascend without a card: levels of a graph are cached apart, and no file of the back end is left."""
    script = tmp_path / "twice.py"
    script.write_text(ASCEND)
    libraries = str(stand_ins.build(tmp_path / "stand-ins"))
    variables = {"LD_LIBRARY_PATH": libraries, "MS_SIMULATION_LEVEL": "0", "GM_GRAPHS": str(tmp_path / "graphs")}
    environment = {**os.environ, **variables, "PYTHONPATH": str(ROOT)}

    def run(level: str) -> str:
        command = [sys.executable, str(script), level]
        process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=True)
        assert "does not load" not in process.stderr
        return process.stdout.splitlines()[-1]

    assert [run("O0"), run("O0"), run("O1")] == ["compiled", "cached", "compiled"]
    assert len(list((tmp_path / "graphs").glob("*.mindir"))) == 2
