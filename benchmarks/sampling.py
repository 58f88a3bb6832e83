"""Generating an image with this toolkit and with diffusers' pipeline, in turns: Euler, guidance.

python benchmarks/sampling.py --size tiny --steps 20
"""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks import report
from benchmarks.cases import SIZES, Case, prepare
from benchmarks.workers import Measurement, alternate
from gm.config import cli
from gm.errors import UserError


def main() -> None:
    parser = report.parser("Compare time and memory of generating an image with diffusers' pipeline.")
    report.add_mode(parser)
    report.add_precision(parser)
    report.add_resolution(parser)
    parser.add_argument("--batch", type=int, default=1, help="images at once (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="of the sampler, at least 3 (default: %(default)s)")
    parser.add_argument("--guidance", type=float, default=5.0, help="scale; 1 is none (default: %(default)s)")
    report.add_turns(parser)
    report.add_graphs(parser)
    flags = parser.read()
    if flags["steps"] < 3:
        raise UserError(
            f"--steps is {flags['steps']}; it must be at least 3: the first and the last are not timed alone"
        )
    size = SIZES[flags["size"]]
    case = report.case(flags)
    turns = report.turns(flags, size, rounds=size.image_rounds, pieces=1, warm_ups=1)
    prepare(size)
    report.choose_graphs(flags)
    sides = report.compared("sampling", case, flags["references"])
    show(case, alternate(sides, **turns, together=size.together), flags["graphs"], flags["json"])


def show(case: Case, measured: dict[str, Measurement], graphs: str, path: str | None) -> None:
    """Print both sides and their ratios; `path` takes the JSON."""
    steps = {
        name: statistics.median(s for answer in side.answers for s in answer["steps"])
        for name, side in measured.items()
    }
    ratios = report.ratios(measured)
    reference = ratios["reference"]
    results: dict[str, Any] = {
        "case": vars(case),
        "graphs": graphs,
        "seconds_a_step": steps,
        **ratios,
        "ratio_of_steps": steps["ours"] / steps[reference],
    }
    text = report.sides(measured)
    text += (
        f"\n\na step: ours {report.seconds(steps['ours'])} s, {reference} {report.seconds(steps[reference])} s\n"
        f"ours/{reference}: {results['ratio_of_medians']:.3f} of the time of an image (median of pairs "
        f"{results['median_of_ratios']:.3f}), {results['ratio_of_steps']:.3f} of a step's, "
        f"{results['ratio_of_peaks']:.3f} of the memory while sampling"
    )
    title = (
        f"An image: {case.size}, {case.resolution} px, {case.batch} at once, {case.steps} steps of Euler, "
        f"guidance {case.guidance:g}, {case.precision}, {case.mode} mode, low memory {case.low_memory}, graphs {graphs}"
    )
    report.answer(path, title, text, results)


if __name__ == "__main__":
    cli.run(main)
