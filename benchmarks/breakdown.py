"""Where a training step's time goes: by part, forward and back, and by operator, from MindSpore's profiler.

    python benchmarks/breakdown.py --size tiny

Each part is compiled and profiled by itself (`profiled` says why); "other" is what the whole step does beside them.
"""

from __future__ import annotations

import sys
from typing import Any

from benchmarks import report
from benchmarks.alternation import Process, worker
from benchmarks.cases import Case
from benchmarks.models import SIZES, prepare
from gm.config import cli

_PARTS = ("whole", "encoder 1", "encoder 2", "UNet", "update", "autoencoder")
_WAYS = ("forward", "back")


def main() -> None:
    parser = report.parser("Profile a training step by part and by operator, in graph mode.")
    parser.add_argument("--resolution", type=int, help="pixels a side (default: the size's)")
    parser.add_argument("--batch", type=int, default=1, help="images a step (default: %(default)s)")
    parser.add_argument("--operators", type=int, default=15, help="operators to show (default: %(default)s)")
    parser.add_argument("--warm_ups", type=int, default=10, help="steps before those that count (default: %(default)s)")
    flags = parser.read()
    size = SIZES[flags["size"]]
    prepare(size)
    case = Case(size.name, flags["resolution"] or size.pixels, flags["batch"])
    profiles: dict[str, Any] = {}
    for part in _PARTS:
        print(f"… {part}", file=sys.stderr, flush=True)
        with Process(part, worker("benchmarks.profiled", part, case.written(), str(flags["warm_ups"]))) as process:
            process.facts()
            profiles[part] = process.ask()
    title = f"Where a training step goes: {size.name}, {case.resolution} px, batch {case.batch}, graph mode"
    text = f"{by_part(profiles)}\n\n{by_operator(profiles['whole']['operators'], flags['operators'])}"
    report.answer(flags["json"], title, text, {"case": vars(case), "profiles": profiles})


def by_part(profiles: dict[str, Any]) -> str:
    """Return the table of parts; what is not in a part is the step's own, or time between operators."""
    sums = {part: _sums(answer["operators"]) for part, answer in profiles.items()}
    whole, encoding = sums.pop("whole"), sums.pop("autoencoder")
    sums["other"] = [total - sum(part[k] for part in sums.values()) for k, total in enumerate(whole)]
    rows = [
        [part, *(f"{value:.3g}" for value in values), f"{sum(values) / sum(whole):.1%}"]
        for part, values in sums.items()
    ]
    seconds = profiles["whole"]["seconds_a_run"]
    rows.append(["all operators", *(f"{value:.3g}" for value in whole), "100.0%"])
    table = report.table(["part", "forward ms", "back ms", "share"], rows)
    return (
        f"{table}\n\na step under the profiler: {report.seconds(1e3 * seconds)} ms, of which "
        f"{1e3 * seconds - sum(whole):.3g} ms between operators\n"
        f"autoencoder: 0 in a step; encodes an image once in {sum(encoding):.3g} ms"
    )


def by_operator(operators: dict[str, Any], most: int) -> str:
    """Return the table of the `most` expensive operators of a step."""
    total = sum(_sums(operators))
    ordered = sorted(operators.items(), key=lambda item: -sum(item[1][way] for way in _WAYS))
    rows = [[name, f"{entry['count']:.0f}", *(f"{entry[way]:.3g}" for way in _WAYS)] for name, entry in ordered[:most]]
    shares = [sum(entry[way] for way in _WAYS) / total for _, entry in ordered[:most]]
    rows = [[*row, f"{share:.1%}"] for row, share in zip(rows, shares, strict=True)]
    rest = dict(ordered[most:])
    if rest:
        count = sum(entry["count"] for entry in rest.values())
        sums = _sums(rest)
        rows.append([f"{len(rest)} others", f"{count:.0f}", *(f"{v:.3g}" for v in sums), f"{sum(sums) / total:.1%}"])
    return report.table(["operator", "count", "forward ms", "back ms", "share"], rows)


def _sums(operators: dict[str, Any]) -> list[float]:
    return [sum(entry[way] for entry in operators.values()) for way in _WAYS]


if __name__ == "__main__":
    cli.run(main)
