"""Flags and output of every benchmark: a small table, and JSON."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.cases import REFERENCES, SIZES, Case, Size
from benchmarks.workers import Measurement, median_of_ratios, worker
from gm.config import RunConfig, paths
from gm.config.parser import Parser
from gm.errors import UserError

_LIBRARIES = ("mindspore", "torch", "diffusers", "transformers", "numpy")


def parser(description: str, size: str = "tiny") -> Parser:
    """Return a parser with --size and --json."""
    new = Parser(description)
    new.add_argument("--size", default=size, choices=list(SIZES), help="of the model (default: %(default)s)")
    new.add_argument("--json", metavar="PATH", type=paths.expand, help="file to write everything measured to, as JSON")
    return new


def add_resolution(parser: Parser) -> None:
    """Add the flag --resolution, whose default is the size's."""
    parser.add_argument("--resolution", type=int, help="pixels a side (default: the size's)")


def case(flags: dict[str, Any]) -> Case:
    """Return the case of a command; fields without a flag have their defaults."""
    values = {field.name: flags[field.name] for field in dataclasses.fields(Case) if field.name in flags}
    return Case(**{**values, "resolution": resolution(flags)})


def resolution(flags: dict[str, Any]) -> int:
    """Return the pixels a side that the flags give, or those of the size."""
    return flags["resolution"] or SIZES[flags["size"]].pixels


def add_turns(parser: Parser) -> None:
    """Add the flags for the number of measurements."""
    parser.add_argument("--rounds", type=int, help="turns of each side (default: the size's)")
    parser.add_argument("--pieces", type=int, help="pieces of work a turn (default: the size's)")
    parser.add_argument("--warm_ups", type=int, help="pieces of work before the measured ones (default: the size's)")


def add_mode(parser: Parser) -> None:
    """Add the flags for the mode of the toolkit."""
    levels = next(f.metadata["choices"] for f in dataclasses.fields(RunConfig) if f.name == "low_memory")
    parser.add_argument("--mode", default="graph", choices=("graph", "pynative"), help="of ours (default: %(default)s)")
    parser.add_argument("--low_memory", default="auto", choices=levels, help="of ours (default: %(default)s)")


def add_precision(parser: Parser) -> None:
    """Add the flags for the precision of both sides."""
    choices = ("float32", "bfloat16")
    parser.add_argument("--precision", default="float32", choices=choices, help="of ours (default: %(default)s)")
    parser.add_argument(
        "--references",
        nargs="+",
        default=["float32"],
        choices=REFERENCES,
        help="how diffusers runs, once for each; ratios are to the fastest (default: float32)",
    )


def compared(kind: str, case: Case, references: Sequence[str]) -> dict[str, list[str]]:
    """Return the workers of the toolkit and of each of the `references`, by their names in tables."""
    workers = {"ours": worker("benchmarks.ours", kind, case.to_json())}
    for name in references:
        other = dataclasses.replace(case, reference=name)
        workers[f"diffusers {name}"] = worker("benchmarks.reference", kind, other.to_json())
    return workers


def fastest_reference(measured: dict[str, Measurement]) -> str:
    """Return the name of the fastest side but ours."""
    return min((name for name in measured if name != "ours"), key=lambda name: measured[name].median)


def add_graphs(parser: Parser) -> None:
    """Add the flag for the source of compiled graphs."""
    parser.add_argument(
        "--graphs",
        default="compiled",
        choices=("compiled", "cached"),
        help="compiled in every process, with the compiler's memory in the peak, or cached from an earlier run "
        "of the same command (default: %(default)s)",
    )


def choose_graphs(flags: dict[str, Any]) -> None:
    """Set the compile cache of every worker started from now on."""
    if flags["graphs"] == "compiled":
        os.environ["GM_GRAPHS"] = ""


def turns(flags: dict[str, Any], size: Size, **usual: int) -> dict[str, int]:
    """Return the values of these flags for `workers.alternate`; `usual` replaces the defaults of the size."""
    usual = {"rounds": size.rounds, "pieces": size.pieces, "warm_ups": size.warm_ups, **usual}
    for name, value in usual.items():
        if flags[name] is not None and flags[name] < (name != "warm_ups"):
            raise UserError(f"--{name} is {flags[name]}; it must be at least {int(name != 'warm_ups')}")
        usual[name] = value if flags[name] is None else flags[name]
    return usual


def sides(measured: dict[str, Measurement], unit: str = "s") -> str:
    """Return the table of seconds and memory of each side."""
    header = ["", f"median {unit}", f"min {unit}", f"max {unit}", "peak GB", "whole process GB"]
    rows = [
        [name, *map(seconds, (m.median, min(m.seconds), max(m.seconds))), *map(gigabytes, (m.peak, m.peak_of_process))]
        for name, m in measured.items()
    ]
    return table(header, rows)


def ratios(measured: dict[str, Measurement]) -> dict[str, Any]:
    """Return the ratios of ours to the fastest reference, and all measurements."""
    name = fastest_reference(measured)
    ours, reference = measured["ours"], measured[name]
    return {
        "reference": name,
        "ratio_of_medians": ours.median / reference.median,
        "median_of_ratios": median_of_ratios(ours, reference),
        "ratio_of_peaks": ours.peak / reference.peak,
        "sides": {name: side.asdict() for name, side in measured.items()},
    }


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return an aligned table, the first column to the left and numbers to the right."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[k]) for line in lines) for k in range(len(header))]
    padded = [
        [cell.rjust(w) if k else cell.ljust(w) for k, (cell, w) in enumerate(zip(r, widths, strict=True))]
        for r in lines
    ]
    return "\n".join("  ".join(row).rstrip() for row in padded)


def answer(path: str | None, title: str, text: str, results: dict[str, Any], measured: bool = True) -> None:
    """Print `title` and `text`; write `results`, and the machine if `measured`, to the JSON file at `path` if any."""
    print(f"{title}\n\n{text}")
    if path:
        whole = {"title": title, **({"machine": machine()} if measured else {}), **results}
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(whole, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def machine() -> dict[str, Any]:
    """Return the hardware and the versions that a measurement depends on."""
    known = {d.metadata["Name"].lower() for d in metadata.distributions()}
    versions = {name: metadata.version(name) for name in _LIBRARIES if name in known}
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cores": os.cpu_count(),
        "memory": memory,
        "processor": _processor(),
        "python": platform.python_version(),
        **versions,
    }


def seconds(value: float) -> str:
    """Format a duration with three significant digits."""
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def gigabytes(value: float) -> str:
    """Format bytes as gigabytes of 10⁹."""
    return f"{value / 1e9:.3g}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
