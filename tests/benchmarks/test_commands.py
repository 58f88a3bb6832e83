"""The benchmarks as a person runs them: their help, and the two against diffusers once, at the tiny size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest

from benchmarks import arithmetic, joined, profiled, shapes, tiling
from gm.config.model import ModelConfig

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = (
    *("arithmetic", "breakdown", "growth", "joining", "memory", "operators", "sampling", "start", "step", "tiling"),
    "unet",
)


def run(name: str, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, f"benchmarks/{name}.py", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize("name", COMMANDS)
def test_help(name: str) -> None:
    ended = run(name, "--help")
    assert ended.returncode == 0, ended.stderr
    assert "--size {tiny,small,full}" in ended.stdout
    assert "--json" in ended.stdout


def test_every_command_is_in_the_table_of_the_readme() -> None:
    text = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    for name in COMMANDS:
        assert f"`python benchmarks/{name}.py" in text


def test_a_mistake_is_one_line() -> None:
    ended = run("sampling", "--steps", "2")
    assert ended.returncode == 2
    assert ended.stderr == "error: --steps is 2; the first and the last are not timed alone, so give 3 or more\n"
    assert run("step", "--rounds", "0").stderr == "error: --rounds is 0; it must be at least 1\n"
    assert "did you mean '--batch'" in run("step", "--bach", "2").stderr
    assert "--python must be the interpreter of an environment with mindone" in run("unet").stderr


def test_arithmetic_counts_and_estimates(tmp_path: Path) -> None:
    ended = run("arithmetic", "--json", str(tmp_path / "counted.json"))
    assert ended.returncode == 0, ended.stderr
    assert "ESTIMATED, not measured" in ended.stdout
    counted = json.loads((tmp_path / "counted.json").read_text())
    assert counted["case"] == {"version": "SD-XL-base-1.0", "pixels": 1024, "batch": 1, "precision": "float16"}
    parts = [cost["forward"] for name, cost in counted["training"].items() if name != "training step"]
    assert counted["training"]["training step"]["forward"] == sum(parts)
    assert len(counted["estimated_on_ascend"]) == 4


def test_a_faster_card_is_bound_by_its_memory() -> None:
    (row, *_) = arithmetic.estimate(ModelConfig(), 256, 1)
    assert row["milliseconds"]["376 TFLOP/s at 55%"] == pytest.approx(row["milliseconds_of_bandwidth"])
    assert row["milliseconds"]["280 TFLOP/s at 25%"] > row["milliseconds_of_bandwidth"]


def test_the_profilers_lines_are_told_apart_by_the_loss() -> None:
    lines = [
        "Default/a-A/MatMul-op0;HostCpuOps;100,1.0,7 1100,3.0,7 ",
        "Default/loss-Loss/ReduceMean-op0;HostCpuOps;200,0.5,7 1200,0.5,7 ",
        "Gradients/Default/a-A/Grad_MatMul/MatMul-op1;HostCpuOps;300,4.0,7 1300,6.0,7 ",
    ]
    assert profiled.operators(lines) == {
        "MatMul": {"count": 2.0, "forward": 2.0, "back": 5.0},
        "ReduceMean": {"count": 1.0, "forward": 0.5, "back": 0.0},
    }


def test_the_operators_shapes_are_those_of_full_size() -> None:
    names = [str(shape) for shape in shapes.shapes(ModelConfig(), 256)]
    assert "attention 1280 × 64, 20 heads, 77 keys" in names
    assert "group_norm 320 × 1024" in names
    assert "layer_norm 640 × 256" in names
    assert shapes.read(shapes.written(shapes.shapes(ModelConfig(), 256))) == shapes.shapes(ModelConfig(), 256)


def test_the_products_of_one_input_are_those_of_full_size() -> None:
    found = {str(group): group for group in joined.groups(ModelConfig(), 256)}
    assert "q, k, v of 64 tokens to 1280: 60 × 3" in found
    assert "q, k, v of 256 tokens to 640: 10 × 3" in found
    # As the published file has them: 140 keys' and values' weights of 2048 inputs, 17 of the time vector.
    assert sum(g.count for name, g in found.items() if name.startswith("keys") and g.width == 2048) == 140
    assert sum(g.count for name, g in found.items() if name.startswith("time") and g.width == 1280) == 17


@pytest.mark.parametrize("joins", [False, True])
def test_products_as_one_are_the_same_as_apart(joins: bool) -> None:
    group = joined.Group("some", 6, 5, 4, 3)
    products = joined.Products(group, joins)
    weights = np.concatenate([weight.asnumpy() for weight in products.weights])
    x = np.random.default_rng(0).standard_normal((6, 1, 5), np.float32)
    parts = np.split(weights @ x[:, 0], 3)
    assert float(products(ms.Tensor(x))) == pytest.approx(sum((part**2).mean() for part in parts), rel=1e-5)


def test_tiles_begin_and_end_where_the_weights_do() -> None:
    # Two tiles of 16 latents share 8; of those 2 at either end are hidden; a latent is 4 pixels.
    assert np.flatnonzero(tiling.borders(24, 16, 4)).tolist() == [4 * 10 - 1, 4 * 14 - 1]


def test_seams_are_found_where_they_are() -> None:
    lines = np.zeros(31, bool)
    lines[15] = True
    whole = (np.arange(32, dtype=np.uint8)[:, None] + np.arange(32, dtype=np.uint8))[None, ..., None]
    whole = whole.repeat(3, axis=3)  # steps of 1 everywhere
    tiles = whole.copy()
    tiles[:, 16:] += 10
    tiles[:, :, 16:] += 10
    found = tiling.compare(whole, tiles, lines)
    assert found["largest difference"] == 20
    assert found["mean difference"] == 10
    assert found["steps across borders/elsewhere, whole"] == 1
    assert found["steps across borders/elsewhere, tiles"] == 11
    assert found["steps of the difference, across borders"] == 10
    assert found["steps of the difference, elsewhere"] == 0


def test_tiles_of_an_image_that_they_do_not_fit() -> None:
    ended = run("tiling", "--tile", "256")
    assert ended.returncode == 2
    assert ended.stderr == "error: --resolution 256 and --tile 256: give multiples of 4, the tile the smaller\n"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
@pytest.mark.parametrize(("name", "flags"), [("step", ()), ("sampling", ("--steps", "3"))])
def test_against_diffusers_once(tmp_path: Path, name: str, flags: tuple[str, ...]) -> None:
    path = tmp_path / "results.json"
    once = ("--mode", "pynative", "--rounds", "1", "--warm_ups", "0", "--json", str(path))
    ended = run(name, *flags, *once)
    assert ended.returncode == 0, ended.stderr
    assert "ours/reference: " in ended.stdout
    results = json.loads(path.read_text())
    for side in ("ours", "reference"):
        assert len(results["sides"][side]["seconds"]) == 1
        assert results["sides"][side]["peak"] > 1e6
    if name == "step":
        # Both are shown the same words, if not the same noise, by the same model.
        losses = [results["sides"][side]["answers"][0]["loss"] for side in ("ours", "reference")]
        assert all(0 < loss < 3 for loss in losses)
    assert os.path.exists(ROOT / "benchmarks" / "weights" / "tiny.ckpt")
