"""The benchmarks as commands: their help, and the two against diffusers once, at the tiny size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import context_loss, estimate, operators, report, scaling
from benchmarks.cases import SIZES, Case
from benchmarks.workers import Measurement
from gm.config.model import ModelConfig

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ("context_loss", "estimate", "memory", "operators", "sampling", "scaling", "start", "step")


def run(name: str, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, f"benchmarks/{name}.py", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_lists_the_common_flags(name: str) -> None:
    result = run(name, "--help")
    assert result.returncode == 0, result.stderr
    assert "--size {tiny,small,full,sd1.5}" in result.stdout
    assert "--json" in result.stdout


def test_every_command_is_in_the_table_of_the_readme() -> None:
    text = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    for name in COMMANDS:
        assert f"`python benchmarks/{name}.py" in text


def test_user_error_is_one_line() -> None:
    result = run("sampling", "--steps", "2")
    assert result.returncode == 2
    assert result.stderr == "error: --steps is 2; it must be at least 3: the first and the last are not timed alone\n"
    assert run("step", "--rounds", "0").stderr == "error: --rounds is 0; it must be at least 1\n"
    assert "did you mean '--batch'" in run("step", "--bach", "2").stderr


def test_a_case_has_the_flags_of_its_command_and_defaults_for_the_others() -> None:
    flags = {"size": "tiny", "resolution": None, "batch": 2, "mode": "pynative", "low_memory": "most", "json": None}
    assert report.case(flags) == Case("tiny", 64, batch=2, mode="pynative", low_memory="most")
    assert report.case({**flags, "resolution": 96, "steps": 5, "guidance": 1.0}) == Case(
        "tiny", 96, batch=2, mode="pynative", low_memory="most", steps=5, guidance=1.0
    )


def test_estimate_counts_and_estimates(tmp_path: Path) -> None:
    result = run("estimate", "--json", str(tmp_path / "counted.json"))
    assert result.returncode == 0, result.stderr
    assert "ESTIMATED, not measured" in result.stdout
    counted = json.loads((tmp_path / "counted.json").read_text())
    assert counted["case"] == {"version": "SD-XL-base-1.0", "pixels": 1024, "batch": 1, "precision": "float16"}
    parts = [cost["forward"] for name, cost in counted["training"].items() if name != "training step"]
    assert counted["training"]["training step"]["forward"] == sum(parts)
    assert len(counted["estimated_on_ascend"]) == 4


def test_estimate_counts_the_one_text_encoder_of_stable_diffusion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "counted.json"
    monkeypatch.setattr(sys, "argv", ["estimate.py", "--size", "sd1.5", "--json", str(path)])
    estimate.main()
    counted = json.loads(path.read_text())
    assert counted["case"] == {"version": "SD-1.5", "pixels": 512, "batch": 1, "precision": "float16"}
    assert list(counted["training"]) == ["encoder 1", "UNet", "training step"]
    encoder, twice = counted["training"]["encoder 1"], counted["sampling"]["encoders, once an image"]
    assert twice["forward"] == 2 * encoder["forward"]


def test_faster_card_is_bound_by_memory_bandwidth() -> None:
    (row, *_) = estimate.estimate(ModelConfig(), 256, 1)
    assert row["milliseconds"]["376 TFLOP/s at 55%"] == pytest.approx(row["milliseconds_of_bandwidth"])
    assert row["milliseconds"]["280 TFLOP/s at 25%"] > row["milliseconds_of_bandwidth"]


def test_operator_shapes_are_those_of_full_size() -> None:
    names = [str(shape) for shape in operators.shapes(ModelConfig(), 256)]
    assert "attention 1280 × 64, 20 heads, 77 keys" in names
    assert "group_norm 320 × 1024" in names
    assert "layer_norm 640 × 256" in names
    assert operators.from_json(operators.to_json(operators.shapes(ModelConfig(), 256))) == operators.shapes(
        ModelConfig(), 256
    )


def test_operator_shapes_are_those_of_stable_diffusion() -> None:
    size = SIZES["sd1.5"]
    names = [str(shape) for shape in operators.shapes(size.config().model, size.pixels)]
    assert "attention 320 × 4096, 8 heads, 77 keys" in names
    assert "attention 768 × 77, 12 heads, causal" in names


def test_scaling_shows_multiples_of_the_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = scaling.scaled_cases(SIZES["tiny"], 64)
    measured = {name: Measurement([{"seconds": 3.0}] * 2, peak=30) for name in cases}
    measured["base"] = Measurement([{"seconds": 2.0}] * 2, peak=20)
    scaling.show(cases, measured, str(tmp_path / "scaling.json"))
    found = json.loads((tmp_path / "scaling.json").read_text())["cases"]
    assert (found["base"]["time"], found["batch 4"]["time"], found["batch 4"]["memory"]) == (1.0, 1.5, 1.5)
    assert found["batch 4"]["flops"] == pytest.approx(4)
    assert found["128 px"]["flops"] > 3
    assert ["batch", "4", "x", "1.50", "x", "4.00", "x", "1.50"] in [
        line.split() for line in capsys.readouterr().out.splitlines()
    ]


def test_the_share_of_the_context_loss_is_that_of_the_step_with_it(tmp_path: Path) -> None:
    measured = {
        "without": Measurement([{"seconds": 2.0}] * 2, peak=20),
        "with": Measurement([{"seconds": 2.5}] * 2, 30),
    }
    context_loss.show(Case("tiny", 64), measured, str(tmp_path / "share.json"))
    assert json.loads((tmp_path / "share.json").read_text())["share_of_the_step"] == pytest.approx(0.2)


def test_scaling_over_ranks_needs_a_core_for_each() -> None:
    assert "--ranks is 1000, and " in run("scaling", "--ranks", "1000").stderr
    assert run("scaling", "--ranks", "2", "--steps", "2").returncode == 2


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
@pytest.mark.parametrize(("name", "flags"), [("step", ()), ("sampling", ("--steps", "3"))])
def test_comparison_with_diffusers_runs(tmp_path: Path, name: str, flags: tuple[str, ...]) -> None:
    path = tmp_path / "results.json"
    once = ("--mode", "pynative", "--rounds", "1", "--warm_ups", "0", "--json", str(path))
    result = run(name, *flags, *once)
    assert result.returncode == 0, result.stderr
    assert "ours/diffusers float32: " in result.stdout
    results = json.loads(path.read_text())
    for side in ("ours", "diffusers float32"):
        assert len(results["sides"][side]["seconds"]) == 1
        assert results["sides"][side]["peak"] > 1e6
    if name == "step":
        # Same model and prompts, other noise.
        losses = [results["sides"][side]["answers"][0]["loss"] for side in ("ours", "diffusers float32")]
        assert all(0 < loss < 3 for loss in losses)
    assert os.path.exists(ROOT / "benchmarks" / "weights" / "tiny.ckpt")


def test_pytorch_uses_all_instructions_where_mindspore_must_not() -> None:
    """With AVX2 alone, PyTorch's product in bfloat16 is a plain loop."""
    text = (
        "import torch, time; from benchmarks import cases; cases.lift_onednn_limit();"
        "print(torch.backends.mkldnn.is_available(), torch.ops.mkldnn._is_mkldnn_bf16_supported())"
    )
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    limited = text.replace("cases.lift_onednn_limit();", "")
    results = [
        subprocess.run(
            [sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        for code in (text, limited)
    ]
    has_bfloat16 = "avx512_bf16" in Path("/proc/cpuinfo").read_text()
    assert results == [f"True {has_bfloat16}\n", "True False\n"]
