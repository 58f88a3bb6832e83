"""How a training step's time and memory grow with resolution, batch, rows and accumulation, one at a time.

    python benchmarks/growth.py --size tiny --mode graph

Each case is a process of its own, all relative to the first, the base case.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from benchmarks import costs, report
from benchmarks.alternation import Measured, alternate, worker
from benchmarks.cases import Case
from benchmarks.models import SIZES, prepare
from gm.config import cli

# What grows, by the name of its flag: the field of a case, its name in the table, its usual values.
_GROWING: dict[str, tuple[str, str, tuple[int, ...]]] = {
    "resolutions": ("resolution", "px", ()),
    "batches": ("batch", "images", (2, 4)),
    "rows": ("vectors", "rows", (1, 16)),
    "accumulations": ("accumulation", "steps an update", (4,)),
}


def main() -> None:
    parser = report.parser("Measure how a training step grows with resolution, batch, rows and accumulation.")
    parser.add_argument("--mode", default="graph", choices=("graph", "pynative"), help="(default: %(default)s)")
    for flag, (_, unit, usual) in _GROWING.items():
        default = " ".join(map(str, usual)) or "1.5 and 2 times the size's"
        parser.add_argument(f"--{flag}", type=int, nargs="*", help=f"{unit} (default: {default})")
    report.add_turns(parser)
    report.add_graphs(parser)
    flags = parser.read()
    size = SIZES[flags["size"]]
    prepare(size)
    report.choose_graphs(flags)
    base = Case(size.name, size.pixels, mode=flags["mode"])
    cases = {"base": base}
    for flag, (field, unit, usual) in _GROWING.items():
        chosen = flags[flag] if flags[flag] is not None else usual or (size.pixels * 3 // 2, size.pixels * 2)
        for value in chosen:
            changed: dict[str, Any] = {field: value}
            cases[f"{value} {unit}"] = dataclasses.replace(base, **changed)
    turns = report.turns(flags, size, rounds=1, pieces=size.rounds * size.pieces)
    commands = {name: worker("benchmarks.ours", "step", case.written()) for name, case in cases.items()}
    measured = alternate(commands, **turns, together=False)
    show(cases, measured, flags["graphs"], flags["json"])


def show(cases: dict[str, Case], measured: dict[str, Measured], graphs: str, path: str | None) -> None:
    """Print every case relative to the first; `path` takes the JSON."""
    base, rows = cases["base"], []
    flops = {
        name: costs.total(costs.training(case.config().model, case.resolution, case.batch, "float32")).flops
        for name, case in cases.items()
    }
    first = measured["base"]
    for name, m in measured.items():
        times = (m.median / first.median, flops[name] / flops["base"])
        memory = (report.gigabytes(m.peak), f"{m.peak / first.peak:.2f}", report.gigabytes(m.peak_of_process))
        rows.append([name, report.seconds(m.median), *(f"{value:.2f}" for value in times), *memory])
    header = ["", "s a step", "× base", "FLOPs × base", "peak GB", "× base", "whole process GB"]
    title = (
        f"Growth of a training step: {base.size}; base: {base.resolution} px, batch {base.batch}, "
        f"{base.vectors} rows, 1 step an update, {base.mode} mode, graphs {graphs}"
    )
    results = {
        name: {"case": vars(cases[name]), "flops": flops[name], **m.asdict(), "times_base": m.median / first.median}
        for name, m in measured.items()
    }
    report.answer(path, title, report.table(header, rows), {"graphs": graphs, "cases": results})


if __name__ == "__main__":
    cli.run(main)
