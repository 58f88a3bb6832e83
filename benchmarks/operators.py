"""The toolkit's operators against MindSpore's own and PyTorch's, in the shapes of a training step, in turns.

    python benchmarks/operators.py --size full

Each is chained 20 times inside one graph; the seconds are those of one, forward, and forward and back.
"""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks import report, shapes
from benchmarks.alternation import Measured, alternate, worker
from benchmarks.models import SIZES
from benchmarks.shapes import LINKS
from gm.config import cli
from gm.errors import UserError

_SIDES = ("ours", "native", "PyTorch")
_WAYS = ("forward", "forward and back")


def main() -> None:
    parser = report.parser("Time single operators against MindSpore's own and PyTorch's.", "full")
    parser.add_argument("--resolution", type=int, help="pixels a side (default: the size's)")
    parser.add_argument("--only", help="measure operators of this name only: layer_norm, attention, …")
    report.add_turns(parser)
    flags = parser.read()
    size = SIZES[flags["size"]]
    pixels = flags["resolution"] or size.pixels
    every = shapes.shapes(size.config().model, pixels)
    wanted = [shape for shape in every if flags["only"] in (None, shape.operator)]
    if not wanted:
        known = ", ".join(dict.fromkeys(shape.operator for shape in every))
        raise UserError(f"--only {flags['only']} names no operator; known are {known}")
    text = shapes.written(wanted)
    sides = {
        "ours": worker("benchmarks.chains", "ours", text),
        "native": worker("benchmarks.chains", "native", text),
        "PyTorch": worker("benchmarks.torch_chains", text),
    }
    turns = report.turns(flags, size, rounds=20, pieces=1, warm_ups=20)
    measured = alternate(sides, **turns, together=True)
    title = f"Operators of {size.name} at {pixels} px, microseconds each, {LINKS} in a graph"
    report.answer(flags["json"], title, *show([str(shape) for shape in wanted], measured))


def show(names: list[str], measured: dict[str, Measured]) -> tuple[str, dict[str, Any]]:
    """Return the tables, one a way, and everything in them."""
    results: dict[str, Any] = {
        side: {
            name: {way: [answer["chains"][name][k] / LINKS for answer in m.answers] for k, way in enumerate(_WAYS)}
            for name in names
        }
        for side, m in measured.items()
    }
    tables = []
    for way in _WAYS:
        rows = []
        for name in names:
            ours, native, torch = (statistics.median(results[side][name][way]) for side in _SIDES)
            times = (f"{1e6 * value:.4g}" for value in (ours, native, torch))
            rows.append([name, *times, f"{ours / native:.2f}", f"{ours / torch:.2f}"])
        tables.append(report.table([way, *_SIDES, "ours/native", "ours/PyTorch"], rows))
    return "\n\n".join(tables), {"seconds": results}


if __name__ == "__main__":
    cli.run(main)
