"""Tables and figure of the experiment (docs/hyperparameters.md), from the results of `experiment.py`.

python examples/tiny_sdxl/experiment_report.py
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from examples.tiny_sdxl.experiment import CONTEXT_LOSS_WEIGHT, METHODS, RESULTS, UPDATES, Run, read_results, run_of
from gm.config import cli
from gm.config.parser import Parser

matplotlib.use("agg")
import matplotlib.pyplot as plt

BASE = "AdamW"
NEAR = 0.25  # distance at which a concept counts as trained; about 0.7 before training, 0.2 at best
_MEASURES = {"distance": "distance from the concept", "obedience": "share of what prompts ask for"}
_RESAMPLES = 10_000
Records = dict[Run, dict[str, Any]]


@dataclass(frozen=True)
class Mean:
    """A mean with its 95 % bootstrap interval, and the number of values."""

    value: float
    low: float
    high: float
    count: int


def mean_of(values: Sequence[float]) -> Mean:
    """Return the mean of `values` and its interval, from resamples of the values."""
    array = np.asarray(values, float)
    samples = np.random.default_rng(0).choice(array, (_RESAMPLES, len(array))).mean(1)
    low, high = np.percentile(samples, (2.5, 97.5))
    return Mean(float(array.mean()), float(low), float(high), len(array))


def records_by_run(path: Path) -> Records:
    """Return the records of trained runs."""
    return {run: record for record in read_results(path) if (run := run_of(record))}


def without_context_loss(records: Records) -> Records:
    """Return the runs that compare the optimizers alone."""
    return {run: record for run, record in records.items() if not run.context_loss}


def untrained(path: Path) -> dict[str, dict[str, float]]:
    """Return distance and obedience of each concept's initializer token, by placeholder token."""
    return {each["placeholder_token"]: each["updates"]["0"] for each in read_results(path) if run_of(each) is None}


def values(records: Records, measure: str, updates: int, select: Callable[[Run], bool]) -> list[float]:
    """Return a measure after some updates, of the selected runs."""
    return [record["updates"][str(updates)][measure] for run, record in records.items() if select(run)]


def method_table(records: Records, num_vectors: int) -> str:
    """Return a table: a method in each row, with distance and obedience after each number of updates."""
    rows = []
    for method in METHODS:

        def select(run: Run, method: str = method) -> bool:
            return run.method == method and run.num_vectors == num_vectors

        cells = []
        for count in UPDATES:
            means = {measure: mean_of(values(records, measure, count, select)) for measure in _MEASURES}
            cells.append(" / ".join(_number(mean.value, measure) for measure, mean in means.items()))
        rows.append([method, *cells, str(means["distance"].count)])
    return _table(["distance / obedience after", *map(str, UPDATES), "runs"], rows)


def effect_table(records: Records, updates: int) -> str:
    """Return a table of paired differences after `updates`: each run less the one that differs in this alone."""
    effects: dict[str, Callable[[Run], Run | None]] = {
        f"{method} instead of {BASE}": _swap("method", method, BASE) for method in METHODS if method != BASE
    }
    effects["class word"] = _swap("class_word", True, False)
    for weight in sorted({run.context_loss for run in records} - {0.0}):
        effects[f"context loss of weight {weight:g}"] = _swap("context_loss", weight, 0.0)
    for method in METHODS:
        name = f"context loss of weight {CONTEXT_LOSS_WEIGHT:g} with {method}"
        effects[name] = _swap("context_loss", CONTEXT_LOSS_WEIGHT, 0.0, method)
    effects["4 vectors instead of 1"] = _swap("num_vectors", 4, 1)
    rows = []
    for name, other in effects.items():
        pairs = [(run, base) for run in records if (base := other(run)) in records and not (base and base.context_loss)]
        if not pairs:
            continue  # the experiment has not come so far
        cells = []
        for measure in _MEASURES:
            differences = [
                records[run]["updates"][str(updates)][measure] - records[base]["updates"][str(updates)][measure]
                for run, base in pairs
                if base is not None
            ]
            cells.append(_difference(mean_of(differences), measure))
        rows.append([name, *cells, str(len(pairs))])
    return _table(["", *_MEASURES, "pairs"], rows)


def speed_table(records: Records) -> str:
    """Return a table: after how many updates, and seconds of training, half of a method's runs are near the concept."""
    rows = []
    for method in METHODS:
        cells = []
        for num_vectors in (1, 4):
            runs = {run: r for run, r in records.items() if run.method == method and run.num_vectors == num_vectors}
            near = [first_near(record) for record in runs.values()]
            median = float(np.median(near))
            seconds = float(np.median([record["seconds"] for record in runs.values()]))
            reached = f"{sum(np.isfinite(near))} of {len(near)}"
            cells += ["–", "–", reached] if np.isinf(median) else [f"{median:.0f}", f"{median * seconds:.0f}", reached]
        rows.append([method, *cells])
    heads = [f"{n}: {what}" for n in ("1 vector", "4 vectors") for what in ("updates", "seconds", "runs")]
    return _table(["", *heads], rows)


def first_near(record: dict[str, Any]) -> float:
    """Return the number of updates at which a run's distance first is `NEAR`, between measurements; infinite if never.

    The distance is taken to change linearly between two measurements.
    """
    before: tuple[int, float] | None = None
    for count in UPDATES:
        distance = record["updates"][str(count)]["distance"]
        if distance <= NEAR:
            if before is None:
                return float(count)
            share = (before[1] - NEAR) / (before[1] - distance)
            return before[0] + share * (count - before[0])
        before = (count, distance)
    return float("inf")


def plot(records: Records, target: Path) -> None:
    """Write the figure: both measures over the updates, a line for each method, with its interval."""
    figure, axes = plt.subplots(2, 2, figsize=(9, 6), layout="constrained", sharex=True, sharey="row")
    for column, num_vectors in enumerate((1, 4)):
        for row, measure in enumerate(_MEASURES):
            axis = axes[row, column]
            for method in METHODS:

                def select(run: Run, method: str = method, num_vectors: int = num_vectors) -> bool:
                    return run.method == method and run.num_vectors == num_vectors

                means = [mean_of(values(records, measure, count, select)) for count in UPDATES]
                (line,) = axis.plot(UPDATES, [mean.value for mean in means], marker=".", label=method)
                axis.fill_between(
                    UPDATES, [m.low for m in means], [m.high for m in means], color=line.get_color(), alpha=0.15
                )
            axis.set(xscale="log", ylabel=_MEASURES[measure] if column == 0 else "")
            axis.set_xticks(UPDATES, [str(count) for count in UPDATES], minor=False)
            axis.minorticks_off()
            axis.grid(alpha=0.3)
        axes[0, column].set_title(f"{num_vectors} vector{'s' if num_vectors > 1 else ''}")
        axes[1, column].set_xlabel("updates")
    axes[0, 0].legend()
    figure.savefig(target, dpi=110)
    plt.close(figure)


def _swap(name: str, value: object, base: object, method: str = "") -> Callable[[Run], Run | None]:
    """Return the function from a run with `value` to the one with `base` instead; of `method` alone, if given."""

    def other(run: Run) -> Run | None:
        if getattr(run, name) != value or method not in ("", run.method):
            return None
        return replace(run, **{name: base})  # type: ignore[arg-type]

    return other


def _number(value: float, measure: str) -> str:
    return f"{value:.2f}" if measure == "distance" else f"{100 * value:.0f} %"


def _difference(mean: Mean, measure: str) -> str:
    if measure == "distance":
        return f"{mean.value:+.3f} ({mean.low:+.3f} to {mean.high:+.3f})"
    return f"{100 * mean.value:+.1f} % ({100 * mean.low:+.1f} to {100 * mean.high:+.1f})"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def tables(path: Path) -> dict[str, str]:
    """Return the tables of the docs by title."""
    records = records_by_run(path)
    start = untrained(path)
    plain = without_context_loss(records)
    return {
        "untrained": _table(
            ["", *_MEASURES],
            [
                [f"`{token}`", _number(each["distance"], "distance"), _number(each["obedience"], "obedience")]
                for token, each in start.items()
            ],
        ),
        "1 vector": method_table(plain, 1),
        "4 vectors": method_table(plain, 4),
        "speed": speed_table(plain),
        "effects after 100 updates": effect_table(records, 100),
        "effects after 400 updates": effect_table(records, 400),
    }


def main() -> None:
    parser = Parser("Print the tables of the experiment, and write its figure.")
    parser.add_path("--results", "(default: %(default)s)", default=RESULTS)
    parser.add_path("--figure", "(default: %(default)s)", default="docs/images/experiment.png")
    flags = parser.read()
    for title, table in tables(Path(flags["results"])).items():
        print(f"{title}\n\n{table}\n")
    plot(without_context_loss(records_by_run(Path(flags["results"]))), Path(flags["figure"]))


if __name__ == "__main__":
    cli.run(main)
