"""A training step of this toolkit and one of diffusers' textual inversion for SDXL or Stable Diffusion, in turns.

python benchmarks/step.py --size tiny --mode graph
"""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks import costs, report
from benchmarks.cases import SIZES, Case, prepare
from benchmarks.workers import Measurement, alternate
from gm.config import cli


def main() -> None:
    parser = report.parser("Compare time and memory of a training step with diffusers'.")
    report.add_mode(parser)
    report.add_precision(parser)
    report.add_resolution(parser)
    parser.add_argument("--batch", type=int, default=1, help="images a step (default: %(default)s)")
    parser.add_argument("--vectors", type=int, default=4, help="embedding vectors (default: %(default)s)")
    parser.add_argument("--accumulation", type=int, default=1, help="steps an update (default: %(default)s)")
    report.add_turns(parser)
    report.add_graphs(parser)
    flags = parser.read()
    size = SIZES[flags["size"]]
    case = report.case(flags)
    turns = report.turns(flags, size)
    prepare(size)
    report.choose_graphs(flags)
    sides = report.compared("step", case, flags["references"])
    show(case, alternate(sides, **turns, together=size.together), flags["graphs"], flags["json"])


def show(case: Case, measured: dict[str, Measurement], graphs: str, path: str | None) -> None:
    """Print both sides and their ratios; `path` takes the JSON."""
    ours, ratios = measured["ours"], report.ratios(measured)
    flops = costs.total(costs.training(case.config().model, case.resolution, case.batch, "float32")).flops
    speed = max(
        statistics.median(fact["product_flops_per_second"].get(case.precision, 0.0) for fact in side.facts)
        for side in measured.values()
    )
    results: dict[str, Any] = {
        "case": vars(case),
        "graphs": graphs,
        **ratios,
        "flops": flops,
        "product_flops_per_second": speed,
        "fraction_of_product_speed": flops / ours.median / speed,
    }
    text = report.sides(measured)
    text += (
        f"\n\nours/{ratios['reference']}: {results['ratio_of_medians']:.3f} of the time (median of pairs "
        f"{results['median_of_ratios']:.3f}), {results['ratio_of_peaks']:.3f} of the memory while stepping\n"
        f"our step: {flops / 1e9:.4g} GFLOP counted, {flops / ours.median / 1e9:.3g} GFLOP/s, "
        f"{results['fraction_of_product_speed']:.3f} of the {speed / 1e9:.3g} GFLOP/s of the fastest "
        f"{case.precision} product 2048³ of both sides"
    )
    title = (
        f"A training step: {case.size}, {case.resolution} px, batch {case.batch}, {case.vectors} vectors, "
        f"{case.accumulation} steps an update, {case.mode} mode, {case.precision}, low memory {case.low_memory}, "
        f"graphs {graphs}"
    )
    report.answer(path, title, text, results)


if __name__ == "__main__":
    cli.run(main)
