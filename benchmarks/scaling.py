"""Scaling of a training step of this toolkit with resolution, batch, vectors, accumulation, and with several ranks.

    python benchmarks/scaling.py --size small
    python benchmarks/scaling.py --size tiny --ranks 2

All cases take turns in processes of their own. Ranks are started by mpirun, one after another, with one core for each
rank, so that the work grows with the cores.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import costs, report
from benchmarks.cases import PLACEHOLDER, ROOT, SIZES, Case, Size, as_flags, prepare
from benchmarks.workers import Measurement, alternate, median_of_ratios, worker
from gm.config import cli
from gm.errors import UserError

_BASE = "base"


def main() -> None:
    parser = report.parser("Time a training step of this toolkit at other sizes, or on several ranks.")
    parser.add_argument("--resolution", type=int, help="pixels a side of the base (default: the size's)")
    parser.add_argument("--ranks", type=int, default=1, help="compare 1 with this many ranks instead of cases")
    parser.add_argument("--steps", type=int, default=60, help="training steps with --ranks (default: %(default)s)")
    report.add_turns(parser)
    flags = parser.read()
    size = SIZES[flags["size"]]
    pixels = report.resolution(flags)
    if flags["ranks"] > 1:
        compare_ranks(size, pixels, flags["ranks"], flags["steps"], flags["json"])
        return
    turns = report.turns(flags, size)
    prepare(size)
    cases = scaled_cases(size, pixels)
    sides = {name: worker("benchmarks.ours", "step", case.to_json()) for name, case in cases.items()}
    show(cases, alternate(sides, **turns, together=size.together), flags["json"])


def scaled_cases(size: Size, pixels: int) -> dict[str, Case]:
    """Return the case that the others are compared with, first, and those that differ from it in one thing."""
    base = Case(size.name, pixels)
    changes: dict[str, dict[str, Any]] = {
        f"{pixels * 3 // 2} px": {"resolution": pixels * 3 // 2},
        f"{pixels * 2} px": {"resolution": pixels * 2},
        "batch 2": {"batch": 2},
        "batch 4": {"batch": 4},
        "1 vector": {"vectors": 1},
        "16 vectors": {"vectors": 16},
        "4 steps an update": {"accumulation": 4},
    }
    return {_BASE: base, **{name: dataclasses.replace(base, **change) for name, change in changes.items()}}


def show(cases: dict[str, Case], measured: dict[str, Measurement], path: str | None) -> None:
    """Print time, FLOPs and memory of each case as multiples of the first; `path` takes the JSON."""
    flops = {name: _flops(case) for name, case in cases.items()}
    results: dict[str, Any] = {}
    for name, side in measured.items():
        results[name] = {
            "time": median_of_ratios(side, measured[_BASE]),
            "flops": flops[name] / flops[_BASE],
            "memory": side.peak / measured[_BASE].peak,
            **side.asdict(),
        }
    columns = ("time", "flops", "memory")
    rows = [[name, *(f"x {result[column]:.2f}" for column in columns)] for name, result in results.items()]
    base = cases[_BASE]
    title = (
        f"A training step: {base.size}, {base.resolution} px, batch {base.batch}, {base.vectors} vectors, graph mode"
    )
    text = report.table(["", *columns], rows) + f"\n\nbase: {report.seconds(measured[_BASE].median)} s a step"
    report.answer(path, title, text, {"cases": results})


def _flops(case: Case) -> float:
    return costs.total(costs.training(case.config().model, case.resolution, case.batch, "float32")).flops


def compare_ranks(size: Size, pixels: int, ranks: int, steps: int, path: str | None) -> None:
    """Print the seconds of a step of one process with one core and of `ranks` ranks with one core each."""
    cores = sorted(os.sched_getaffinity(0))
    if ranks > len(cores):
        raise UserError(f"--ranks is {ranks}, and {len(cores)} cores are available; each rank needs one")
    if steps < 4:
        raise UserError(f"--steps is {steps}; it must be at least 4: the first half is not counted")
    prepare(size)
    seconds = {count: step_seconds(size, pixels, count, steps, cores[:count]) for count in (1, ranks)}
    efficiency = seconds[1] / seconds[ranks]
    rows = [
        [str(count), report.seconds(each), f"{count / each:.3g}", f"{count * seconds[1] / each:.2f}"]
        for count, each in seconds.items()
    ]
    text = report.table(["ranks", "seconds a step", "images a second", "speed-up"], rows)
    text += f"\n\nefficiency: {efficiency:.2f}"
    title = f"Ranks with one core each: {size.name}, {pixels} px, batch 1 a rank, 4 vectors, graph mode"
    report.answer(path, title, text, {"seconds": seconds, "efficiency": efficiency})


def step_seconds(size: Size, pixels: int, ranks: int, steps: int, cores: list[int]) -> float:
    """Return the median seconds of the second half of a run's steps. UserError with its output if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        options = {
            "config": size.yaml,
            "weight": size.weight,
            "data_path": size.images,
            "placeholder_token": PLACEHOLDER,
            "resolution": pixels,
            "save_path": folder,
            "train_batch_size": 1,
            "gradient_accumulation_steps": 1,
            "num_vectors": 4,
            "total_step": steps,
            "num_validation_samples": 0,
            "device_target": "CPU",
            "is_parallel": ranks > 1,
        }
        command = ["taskset", "--cpu-list", ",".join(map(str, cores))]
        if ranks > 1:
            command += ["mpirun", "--allow-run-as-root", "--bind-to", "core", "-n", str(ranks)]
        command += [sys.executable, "train_textual_inversion.py", *as_flags(options)]
        print(f"… {' '.join(command)}", file=sys.stderr, flush=True)
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if result.returncode:
            raise UserError(f"the run ended with code {result.returncode}:", (result.stdout + result.stderr)[-2000:])
        records = [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    timed = [record["seconds"] for record in records if "seconds" in record]
    return statistics.median(timed[len(timed) // 2 :])


if __name__ == "__main__":
    cli.run(main)
