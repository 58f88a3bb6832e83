"""Everything that the tiny model compiles for Ascend, and how many transposes and casts its graphs have."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.ascend_dryrun.tool import ROOT, run_tool
from tools.ascend_dryrun import dryrun, stand_ins

GRAPHS = {
    *("train_step", "update", "update_of_8_ranks", "conditioner", "project_context", "denoiser"),
    *("vae_decode", "vae_encode"),
}
# Of each graph: all kernels at most, the attentions with the transposes next to them, the norms with the casts next to
# them. Change a number here together with the code that changes it; docs/performance.md shows the kinds.
EXPECTED = {
    "float16": {
        "train_step": (1711, (19, 304), (62, 246)),
        "conditioner": (190, (5, 40), (11, 22)),
        "denoiser": (677, (14, 112), (51, 102)),
        "vae_decode": (127, (1, 9), (18, 0)),
        "vae_encode": (97, (1, 9), (12, 0)),
        "update": (76, (0, 0), (0, 0)),
    },
    "bfloat16": {
        "train_step": (1700, (19, 304), (62, 246)),
        "denoiser": (677, (14, 112), (51, 102)),
    },
    "float32": {
        "train_step": (1447, (19, 114), (62, 0)),
        "denoiser": (557, (14, 42), (51, 0)),
    },
}


@pytest.mark.parametrize("precision", EXPECTED)
def test_the_graphs_of_the_tiny_model_compile_in_every_precision(precision: str, tmp_path: Path) -> None:
    counts = run_tool(tmp_path / "counts.json", "--precision", precision)[precision]
    assert set(counts) == GRAPHS
    assert counts["update_of_8_ranks"]["kernels"]["AllReduce"] == 3  # of two encoders' gradients and their number
    for name, (most, attentions, norms) in EXPECTED[precision].items():
        assert sum(counts[name]["kernels"].values()) <= most, name
        summary = counts[name]["summary"]
        assert (summary["attentions"], summary["transposes next to attentions"]) == attentions, name
        assert (summary["norms"], summary["casts next to norms"]) == norms, name


def test_the_options_that_change_graphs_compile(tmp_path: Path) -> None:
    # Graphs that no other test needs, so that each is compiled once.
    counts = run_tool(tmp_path / "counts.json", "--variants", "--graphs", "update")["auto"]
    assert "train_step, negative concept" in counts
    # The same kernels as of one step, beside those that are computed again.
    checkpointed = counts["train_step, gradient checkpointing"]["kernels"]
    plain = counts["train_step, Huber loss"]["kernels"]
    assert checkpointed["MatMul"] > plain["MatMul"]


def test_a_910a_has_its_own_branches(tmp_path: Path) -> None:
    counts = run_tool(tmp_path / "counts.json", "--card", "ascend910", "--graphs", "train_step", "denoiser")["auto"]
    assert set(counts) == {"train_step", "denoiser"}


def test_what_cannot_run_does_not_compile(tmp_path: Path) -> None:
    folder = stand_ins.build(dryrun.CACHE)
    environment = {**stand_ins.environment(folder, "ascend910"), "PYTHONPATH": str(ROOT)}
    script = ROOT / "tests" / "ascend_dryrun" / "compile_wrong_graphs.py"
    command = [sys.executable, str(script)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "product: compiled",
        "product of float32 with float16: TypeError",
        "product of wrong shapes: RuntimeError",
        "unknown name: NameError",
        "gradient of wrong shapes: RuntimeError",
        "card: ascend910",
    ]
