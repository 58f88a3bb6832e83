"""Choices by device, graph mode, and the interface of the code that only runs on Ascend."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from gm.config import RunConfig
from gm.errors import UserError
from gm.runtime import backend, onednn
from tests.onednn_operators import flash_attention_operators
from tests.project import MPIRUN


def test_without_a_card_the_cpu_is_chosen_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="gm"):
        chosen = backend.setup(RunConfig())
    assert chosen.device == "CPU"
    assert chosen.graph
    assert chosen.dtype == ms.float32
    assert chosen.world_size == 1
    assert chosen.is_main_process
    assert "running on CPU; --device_target chooses" in caplog.text
    assert not backend.setup(RunConfig(device_target="CPU", ms_mode=1)).graph


def test_flash_attention_on_is_refused_without_its_operators(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(onednn, "_path", "")
    monkeypatch.setenv("DNNLROOT", str(tmp_path))
    with pytest.raises(UserError, match="--flash_attention on needs what is missing here: no oneDNN 3 in DNNLROOT="):
        backend.setup(RunConfig(device_target="CPU", flash_attention="on"))
    backend.setup(RunConfig(device_target="CPU"))
    assert backend.flash_attention() == "off"


@pytest.mark.parametrize("option", ["auto", "on"])
def test_flash_attention_on_the_cpu(option: str) -> None:
    with flash_attention_operators() as there:
        if there:
            backend.setup(RunConfig(device_target="CPU", flash_attention=option))
            assert backend.flash_attention() == option
        backend.setup(RunConfig(device_target="CPU", flash_attention="off"))
        assert backend.flash_attention() == "off"


def test_a_missing_device_is_refused() -> None:
    with pytest.raises(UserError, match=r"no Ascend card on this machine .* use --device_target CPU"):
        backend.setup(RunConfig(device_target="Ascend"))


def test_bfloat16_on_a_cpu_without_it_is_float32(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def load() -> None:
        raise onednn.Unavailable("this processor has neither AVX512-BF16 nor AMX")

    monkeypatch.setattr(onednn, "load", load)
    assert backend.setup(RunConfig(device_target="CPU", ms_mode=1, precision="bfloat16")).dtype == ms.float32
    assert "--precision bfloat16 is float32 here: this processor has neither AVX512-BF16 nor AMX" in caplog.text


@pytest.mark.parametrize(
    ("low_memory", "mode", "expected"),
    [("auto", 0, math.inf), ("auto", 1, 2**23), ("off", 1, math.inf), ("some", 0, 2**23), ("most", 0, 2**20)],
)
def test_low_memory(low_memory: str, mode: int, expected: float) -> None:
    run = RunConfig(device_target="CPU", ms_mode=mode, low_memory=low_memory)
    assert backend.setup(run).keep_half_above == expected


def test_processes_without_the_flag_and_the_flag_without_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="needs several processes: mpirun -n N"):
        backend.setup(RunConfig(device_target="CPU"), is_parallel=True)
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    with pytest.raises(UserError, match="2 processes were started without --is_parallel True"):
        backend.setup(RunConfig(device_target="CPU"))


def test_ranks_wait_as_long_as_the_device_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert backend.setup(RunConfig(device_target="CPU")).timeout == 1800
    assert backend.setup(RunConfig(device_target="CPU"), timeout=5).timeout == 5
    monkeypatch.setattr(backend, "ascend_present", lambda: True)
    monkeypatch.setattr(backend.devices, "select", lambda device, run: None)
    monkeypatch.setattr(backend.devices, "soc_version", lambda: "ascend910b")
    for name in ("_on_ascend", "_target"):
        monkeypatch.setattr(backend, name, getattr(backend, name))
    assert backend.setup(RunConfig(device_target="Ascend")).timeout == 7200
    assert backend.setup(RunConfig(device_target="Ascend"), timeout=5).timeout == 5


def test_hccls_timeouts_are_set_before_the_ranks_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "ascend_present", lambda: True)
    monkeypatch.setattr(backend.devices, "select", lambda device, run: None)
    monkeypatch.setattr(backend.devices, "soc_version", lambda: "ascend910b")
    for name in ("_on_ascend", "_target", "_rank", "_world_size"):
        monkeypatch.setattr(backend, name, getattr(backend, name))
    events: list[object] = []
    monkeypatch.setattr(backend.distributed, "set_hccl_timeouts", events.append)
    monkeypatch.setattr(backend.distributed, "init", lambda built_in: events.append(built_in) or (0, 8))
    assert backend.setup(RunConfig(device_target="Ascend"), is_parallel=True).world_size == 8
    assert events == [7200, False]


def test_a_graph_is_cached_by_card_and_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "ascend_present", lambda: True)
    monkeypatch.setattr(backend.devices, "select", lambda device, run: None)
    for name in ("_on_ascend", "_target"):
        monkeypatch.setattr(backend, name, getattr(backend, name))

    def target(device: str, soc: str = "", level: str = "O0") -> tuple[object, ...]:
        monkeypatch.setattr(backend.devices, "soc_version", lambda: soc)
        backend.setup(RunConfig(device_target=device, jit_level=level))
        return backend._target

    targets = [target("CPU"), target("Ascend", "ascend910"), target("Ascend", "ascend910b")]
    targets.append(target("Ascend", "ascend910b", "O1"))
    assert len(set(targets)) == 4
    assert target("CPU", level="O1") == target("CPU")  # where it has no effect


def test_options_without_effect_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    backend.setup(RunConfig(device_target="CPU", jit_level="O1", max_device_memory="30GB"))
    assert "--jit_level O1 has no effect on CPU" in caplog.messages
    assert "--max_device_memory 30GB has no effect on CPU" in caplog.messages


def test_the_limit_of_onednn_is_logged(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(backend, "onednn_message", lambda: "slow")
    backend.setup(RunConfig(device_target="CPU"))
    assert "slow" in caplog.messages


@pytest.mark.graph
def test_a_compiled_cell_gives_the_same_result() -> None:
    class Double(nn.Cell):
        def construct(self, x: Tensor) -> Tensor:
            return x * 2

    x = Tensor(np.ones(3, np.float32))
    cell = Double()
    assert backend.compile_cell(cell, False) is cell
    assert np.array_equal(backend.compile_cell(cell, True)(x).asnumpy(), cell(x).asnumpy())


def test_graph_mode_is_set_during_a_call_only() -> None:
    class Mode(nn.Cell):
        def __call__(self, fails: bool) -> int:
            if fails:
                raise ValueError("no")
            return ms.get_context("mode")

    get_mode = backend.compile_cell(Mode(), True)
    assert get_mode(False) == ms.GRAPH_MODE
    assert ms.get_context("mode") == ms.PYNATIVE_MODE
    with pytest.raises(ValueError, match="no"):
        get_mode(True)
    assert ms.get_context("mode") == ms.PYNATIVE_MODE


@pytest.mark.graph
def test_a_long_compilation_is_announced(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GM_GRAPHS", "")  # a cached graph is announced otherwise

    class ManyCells(nn.Cell):
        """Holds many Cells, of which it calls none."""

        def __init__(self, cells: int) -> None:
            super().__init__()
            self.held = nn.CellList([nn.ReLU() for _ in range(cells)])

        def construct(self, x: Tensor) -> Tensor:
            return x + 1

    caplog.set_level("INFO", logger="gm")
    x = Tensor(np.ones(3, np.float32))
    backend.compile_cell(ManyCells(999), False, "it")(x)
    backend.compile_cell(ManyCells(9), True, "it")(x)
    backend.compile_cell(ManyCells(999), True)(x)
    assert caplog.messages == []
    run = backend.compile_cell(ManyCells(999), True, "it")
    run(x)
    run(x)
    run(Tensor(np.ones(4, np.float32)))
    backend.compile_cell(ManyCells(999), True, "it", gradient=True)(x)
    assert caplog.messages == [
        "compiling it: about 14 s, nothing moves meanwhile",
        "compiling it: about 14 s, nothing moves meanwhile",
        "compiling it: about 28 s, nothing moves meanwhile",
    ]


RANK = """
import sys, time
from pathlib import Path
from gm.config import RunConfig
from gm.runtime import backend

group = backend.setup(RunConfig(device_target="CPU", ms_mode=1), is_parallel=True)
if group.is_main_process:
    time.sleep(1)
    Path(sys.argv[1]).write_text("written")
group.barrier()
assert Path(sys.argv[1]).read_text() == "written"
print("passed", flush=True)
"""


@pytest.mark.e2e
def test_barrier_waits_for_all_ranks(tmp_path: Path) -> None:
    (tmp_path / "rank.py").write_text(RANK)
    launcher = (*MPIRUN, "-x", f"PYTHONPATH={Path.cwd()}")
    command = (*launcher, sys.executable, str(tmp_path / "rank.py"), str(tmp_path / "file"))
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    # Not its exit code: MindSpore's shutdown, after all this, sometimes crashes on a busy machine.
    assert ended.stdout.count("passed") == 2, ended.stdout + ended.stderr


def test_the_mean_over_one_rank_is_the_identity() -> None:
    x = Tensor(np.arange(3, dtype=np.float32))
    assert backend.AllReduceMean(1)(x) is x
    assert math.isclose(float(backend.AllReduceMean(1)(x).sum()), 3.0)


def test_a_simulated_card_needs_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    devices: list[str] = []
    monkeypatch.setenv("MS_SIMULATION_LEVEL", "0")
    monkeypatch.setattr(ms, "set_device", devices.append)
    monkeypatch.setattr(backend, "_on_ascend", False)  # restored afterwards
    assert backend.setup(RunConfig(device_target="Ascend")).device == "Ascend"
    assert devices == ["Ascend"]
    assert backend.on_ascend()
    # The simulation is asked for by name: the default stays what the machine has.
    assert backend.setup(RunConfig()).device == "CPU"
