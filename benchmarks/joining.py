"""Whether products that share their input would be faster as one: with all their weights in one matrix, apart again
afterwards.

    python benchmarks/joining.py --size full

Queries, keys and values of self-attention, by level; the keys and values of the text, of every layer at once; the
projections of the time vector, of every block at once. Milliseconds in a whole step, forward, and forward and back.
"""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks import joined, report
from benchmarks.alternation import Measured, alternate, worker
from benchmarks.models import SIZES
from gm.config import cli


def main() -> None:
    parser = report.parser("Time products that share their input, apart and as one.", "full")
    parser.add_argument("--resolution", type=int, help="pixels a side (default: the size's)")
    report.add_turns(parser)
    flags = parser.read()
    size = SIZES[flags["size"]]
    pixels = flags["resolution"] or size.pixels
    turns = report.turns(flags, size, rounds=20, pieces=1, warm_ups=20)
    sides = {side: worker("benchmarks.joined", side, size.name, str(pixels)) for side in joined.SIDES}
    measured = alternate(sides, **turns, together=True)
    groups = [str(group) for group in joined.groups(size.config().model, pixels)]
    title = f"Products that share their input, {size.name} at {pixels} px, milliseconds in a whole step"
    report.answer(flags["json"], title, *show(groups, measured))


def show(groups: list[str], measured: dict[str, Measured]) -> tuple[str, dict[str, Any]]:
    """Return the table, and every second measured."""
    seconds: dict[str, Any] = {
        group: {
            way: {side: [answer["groups"][group][k] for answer in m.answers] for side, m in measured.items()}
            for k, way in enumerate(joined.WAYS)
        }
        for group in groups
    }
    rows = []
    for group, ways in seconds.items():
        for way, by_side in ways.items():
            apart, one = (statistics.median(by_side[side]) for side in joined.SIDES)
            rows.append([group, way, f"{1e3 * apart:.1f}", f"{1e3 * one:.1f}", f"{one / apart:.2f}"])
    return report.table(["", "", *joined.SIDES, "joined/apart"], rows), {"seconds": seconds}


if __name__ == "__main__":
    cli.run(main)
