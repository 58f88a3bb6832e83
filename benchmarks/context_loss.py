"""The share of a training step's time that the context loss takes.

python benchmarks/context_loss.py --size full
"""

from __future__ import annotations

import dataclasses

from benchmarks import report
from benchmarks.cases import SIZES, Case, prepare
from benchmarks.workers import Measurement, alternate, median_of_ratios, worker
from gm.config import cli

_WITHOUT, _WITH = "without", "with"


def main() -> None:
    parser = report.parser("Time a training step of this toolkit with and without the context loss.")
    report.add_mode(parser)
    report.add_resolution(parser)
    parser.add_argument("--batch", type=int, default=1, help="images a step (default: %(default)s)")
    report.add_turns(parser)
    report.add_graphs(parser)
    flags = parser.read()
    size = SIZES[flags["size"]]
    base = report.case(flags)
    cases = {_WITHOUT: base, _WITH: dataclasses.replace(base, context_loss=0.1)}
    turns = report.turns(flags, size)
    prepare(size)
    report.choose_graphs(flags)
    sides = {name: worker("benchmarks.ours", "step", case.to_json()) for name, case in cases.items()}
    show(base, alternate(sides, **turns, together=size.together), flags["json"])


def show(base: Case, measured: dict[str, Measurement], path: str | None) -> None:
    """Print seconds and memory of both, and the share of the context loss; `path` takes the JSON."""
    ratio = median_of_ratios(measured[_WITH], measured[_WITHOUT])
    share = 1 - 1 / ratio
    results = {
        "case": vars(base),
        "share_of_the_step": share,
        **{name: measurement.asdict() for name, measurement in measured.items()},
    }
    title = f"A training step: {base.size}, {base.resolution} px, batch {base.batch}, {base.mode} mode"
    rows = [
        [name, f"{report.seconds(each.median)} s", f"{each.peak / 2**30:.2f} GiB"] for name, each in measured.items()
    ]
    text = report.table(["context loss", "a step", "memory"], rows)
    report.answer(path, title, f"{text}\n\nthe context loss takes {100 * share:.1f} % of a step with it", results)


if __name__ == "__main__":
    cli.run(main)
