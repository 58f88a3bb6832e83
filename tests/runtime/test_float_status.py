"""gm/runtime/float_status.py: overflow on cards that saturate, with stand-ins for the operators of Ascend."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn, ops

from gm.errors import UserError
from gm.runtime import float_status
from gm.runtime.backend import compile_cell
from tests.project import Workshop
from tools.ascend_dryrun import stand_ins

ROOT = Path(__file__).resolve().parents[2]

LARGEST = 65504.0  # of float16


class Registers:
    """Eight status registers, with stand-ins for the operators: nothing but their inputs keeps them in their place."""

    def __init__(self) -> None:
        self.bits = np.zeros(8, np.int32)
        self.get = ops.Custom(lambda status: self.bits.copy(), lambda shape: shape, lambda dtype: dtype, "pyfunc")
        self.clear = ops.Custom(self._clear, lambda shape: shape, lambda dtype: dtype, "pyfunc")
        self.narrow = ops.Custom(self._narrow, lambda shape: shape, lambda dtype: dtype, "pyfunc")

    def _clear(self, status: np.ndarray) -> np.ndarray:
        self.bits[:] = 0
        return status

    def _narrow(self, x: np.ndarray) -> np.ndarray:
        """Saturate at float16's largest value, and set the registers, as the 910A does."""
        time.sleep(0.05)  # what does not wait for this comes before it
        if (np.abs(x) > LARGEST).any():
            self.bits[:] = 1
        return np.clip(x, -LARGEST, LARGEST)


class Step(nn.Cell):
    """Gradient of scale · (Σ w x + overflow of `forward`), where the gradient passes through float16."""

    def __init__(self, registers: Registers) -> None:
        super().__init__(auto_prefix=False)
        self.w = Parameter(Tensor(np.ones(3, np.float32)), name="w")
        self.narrow = registers.narrow
        self.narrow_gradient = ops.InsertGradientOf(registers.narrow)

    def loss(self, scale: Tensor, x: Tensor, forward: Tensor) -> Tensor:
        loss = self.narrow_gradient(self.w * x).sum() + ops.stop_gradient(self.narrow(forward)).sum()
        return loss * float_status.clear_after(loss, scale)

    def construct(self, scale: Tensor, x: Tensor, forward: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        loss, gradients = ms.value_and_grad(self.loss, None, (self.w,))(scale, x, forward)
        # A graph computes its first result first, unless something holds the order.
        return float_status.finite_since_clear(gradients), gradients[0], loss


@pytest.mark.parametrize(
    ("scale", "forward", "expected"),
    [
        (2.0**15, 1.0, ([2.0**15] * 3, True)),
        (2.0**16, 1.0, ([LARGEST] * 3, False)),  # finite, and wrong
        # What saturates in the forward pass alone does so at any loss scale.
        (2.0**15, 1e6, ([2.0**15] * 3, True)),
        (2.0**16, 1e6, ([LARGEST] * 3, False)),
    ],
)
@pytest.mark.parametrize("graph", [False, pytest.param(True, marks=pytest.mark.graph)], ids=["pynative", "graph"])
def test_an_overflow_counts_in_the_backward_pass_alone(
    monkeypatch: pytest.MonkeyPatch, graph: bool, scale: float, forward: float, expected: tuple[list[float], bool]
) -> None:
    registers = Registers()
    monkeypatch.setattr(float_status, "_clear_status", registers.clear)
    monkeypatch.setattr(float_status, "_get_status", registers.get)
    # A graph of its own for each case: the second call happens to keep the order that nothing holds.
    step = compile_cell(Step(registers), graph)
    registers.bits[:] = 1  # as the optimizer may have left them
    finite, gradient, _ = step(Tensor(scale, ms.float32), Tensor(np.ones(3, np.float32)), Tensor([forward], ms.float32))
    assert (gradient.asnumpy().tolist(), bool(finite)) == expected


def name_card(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let MindSpore name the device an Ascend card and the card `name`."""
    monkeypatch.setattr(float_status.ms, "get_context", lambda key: "Ascend")
    monkeypatch.setattr(float_status.devices, "soc_version", lambda: name)


@pytest.mark.parametrize(("name", "expected"), [("ascend910", True), ("ascend910b", False), ("ascend910_93", False)])
def test_only_the_910a_saturates(monkeypatch: pytest.MonkeyPatch, name: str, expected: bool) -> None:
    name_card(monkeypatch, name)
    assert float_status.saturates() is expected
    monkeypatch.setattr(float_status.ms, "get_context", lambda key: "CPU")
    assert not float_status.saturates()


@pytest.mark.parametrize(
    ("variable", "bad", "good"),
    [
        ("MS_ASCEND_CHECK_OVERFLOW_MODE", "SATURATION_MODE", "INFNAN_MODE"),
        ("INF_NAN_MODE_ENABLE", "0", "1"),
        ("INF_NAN_MODE_FORCE_DISABLE", "1", "0"),
    ],
)
def test_variables_that_make_later_cards_saturate_are_refused(
    monkeypatch: pytest.MonkeyPatch, variable: str, bad: str, good: str
) -> None:
    name_card(monkeypatch, "ascend910b")
    monkeypatch.setenv(variable, good)
    float_status.check_environment()
    monkeypatch.setenv(variable, bad)
    with pytest.raises(UserError, match=f"{variable}={bad} makes the card saturate: .*; unset {variable}"):
        float_status.check_environment()
    name_card(monkeypatch, "ascend910")  # which saturates in any case, and the toolkit knows
    float_status.check_environment()


CODE = """
import dataclasses, json, sys
from gm.runtime import backend
from gm import config as configuration
from mindspore.common import api
from mindspore.train import anf_ir_pb2
from tools.ascend_dryrun import graphs

config = configuration.load(sys.argv[1])
run = dataclasses.replace(config.run, device_target="Ascend", ms_mode=0, precision="float16")
graph = graphs.Graphs(config, backend.setup(run)).train_step()
backend.compile_cell(graph.cell, graph=True)(*graph.inputs)
model = anf_ir_pb2.ModelProto()
model.ParseFromString(api._cell_graph_executor.get_optimize_graph_proto(graph.cell))
print(json.dumps([(node.op_type, node.scope) for node in model.graph.node]))
"""


@pytest.mark.e2e
def test_in_the_step_compiled_for_ascend_the_whole_backward_pass_is_watched(workshop: Workshop, tmp_path: Path) -> None:
    environment = stand_ins.environment(stand_ins.build(tmp_path), "ascend910")
    command = [sys.executable, "-c", CODE, str(workshop.yaml)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    nodes = json.loads(done.stdout.splitlines()[-1])
    kinds = [kind for kind, _ in nodes]
    assert (kinds.count("NPUClearFloatStatusV2"), kinds.count("NPUGetFloatStatusV2")) == (1, 1)
    clear, get = kinds.index("NPUClearFloatStatusV2"), kinds.index("NPUGetFloatStatusV2")
    backward = [place for place, (_, scope) in enumerate(nodes) if scope.startswith("Gradients/")]
    assert clear < min(backward)
    assert max(backward) < get
    forward = [place for place, kind in enumerate(kinds) if kind in ("Conv2D", "Conv2DExt", "Convolution")]
    assert max(forward) < clear
