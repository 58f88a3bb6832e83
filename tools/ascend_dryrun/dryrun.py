"""Compile the graphs of a config for Ascend, without a card and without CANN, and count their kernels.

python tools/ascend_dryrun/dryrun.py --config configs/training/tiny_textual_inversion.yaml --precisions float16 float32

It needs Linux on x86-64, gcc and nm, and no weights. MindSpore's complaints about the package te mean nothing here.

It proves that syntax, shapes, dtypes and gradients of everything that is chosen for Ascend are consistent, in graph
mode, on the card that --card names. It does not prove that a kernel exists (`ops.eig` compiles) or supports the dtype
(flash attention compiles in float32), what a kernel computes, what the back end of Ascend joins or refuses, PyNative
mode, or any time or memory.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gm.config import Config, cli
from gm.errors import UserError
from tools.ascend_dryrun import stand_ins

log = logging.getLogger("gm")

_SECTIONS = ("run", "concept", "data", "training", "loss")
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sdxl-textual-inversion" / "cann-stand-ins"


def main() -> None:
    parser = _parser()
    flags, rest = parser.parse_known_args()
    if "--help" in rest or "-h" in rest:
        parser.print_help()
    config = cli.parse(__doc__ or "", _SECTIONS, rest)
    if not stand_ins.is_ready(flags.card):
        environment = stand_ins.environment(stand_ins.build(Path(flags.cache)), flags.card)
        sys.stdout.flush()
        # A process of its own: the loader reads where libraries are when a process starts.
        os.execve(sys.executable, [sys.executable, *sys.argv], environment)
    results = compile_all(config, flags.precisions or [config.run.precision], flags.graphs, flags.variants)
    _write(results, flags)


def compile_all(
    config: Config, precisions: Sequence[str], only: Sequence[str] = (), variants: bool = False
) -> dict[str, dict[str, Any]]:
    """Compile the graphs `only` (default: all) in each precision, and with `variants` those that options change.

    Returns by precision and graph the `kernels` by kind, the `summary` of `Kernels` and `seconds`. Raises UserError for
    an unknown graph, and for one that does not compile, with MindSpore's message.
    """
    from gm.runtime import backend
    from tools.ascend_dryrun import graphs
    from tools.ascend_dryrun.variants import VARIANTS

    unknown = set(only) - set(graphs.names(config))
    if unknown:
        raise UserError(f"--graphs: this model has no {unknown.pop()}; it has {', '.join(graphs.names(config))}")
    results: dict[str, dict[str, Any]] = {}
    for precision in precisions:
        run = dataclasses.replace(config.run, device_target="Ascend", ms_mode=0, precision=precision)
        device = backend.setup(run)
        base = graphs.Graphs(config, device)
        results[precision] = {name: _compile(base, name, precision) for name in only or graphs.names(config)}
        for title, variant in VARIANTS.items() if variants else ():
            changed = graphs.Graphs(variant.apply(config), device, variant.num_chunks)
            for name in variant.graphs:
                results[precision][f"{name}, {title}"] = _compile(changed, name, f"{precision}, {title}")
    return results


def _compile(all_graphs: Any, name: str, title: str) -> dict[str, Any]:
    """Compile one graph and count its kernels."""
    from gm.runtime import backend
    from tools.ascend_dryrun import graphs
    from tools.ascend_dryrun.kernels import Kernels

    graph = graphs.GRAPHS[name](all_graphs)
    started = time.perf_counter()
    try:
        backend.compile_cell(graph.cell, graph=True)(*graph.inputs)
    except Exception as error:
        log.error("%s", error)  # with the place in the source
        raise UserError(f"{name} ({title}) does not compile for Ascend: {str(error).splitlines()[0]}") from error
    seconds = time.perf_counter() - started
    kernels = Kernels(graph.cell)
    counted = kernels.count()
    log.info("%s (%s): %d kernels, compiled in %.0f s", name, title, counted.total(), seconds)
    return {"kernels": dict(counted.most_common()), "summary": kernels.summary(), "seconds": round(seconds, 1)}


def _write(results: dict[str, dict[str, Any]], flags: argparse.Namespace) -> None:
    """Print the tables, and write them to the files that the flags name."""
    from tools.ascend_dryrun import kernels

    tables = []
    for precision, graphs in results.items():
        counts = {name: graph["kernels"] for name, graph in graphs.items()}
        tables.append(f"{precision}, {flags.card}\n\n{kernels.markdown(counts)}\n")
    print("\n" + "\n".join(tables))
    if flags.table:
        Path(flags.table).write_text("\n".join(tables), encoding="utf-8")
    if flags.json:
        Path(flags.json).write_text(json.dumps({flags.card: results}, indent=1) + "\n", encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    """Return the parser of the flags that only this tool has; training's are read as training reads them."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, description=__doc__)
    parser.add_argument("--graphs", nargs="+", default=(), help="the graphs to compile (default: all)")
    parser.add_argument("--variants", action="store_true", help="also those that options change: variants.py")
    parser.add_argument("--precisions", nargs="+", help="several instead of --precision")
    parser.add_argument(
        "--card", default=stand_ins.CARDS[0], choices=stand_ins.CARDS, help="card to compile for (default: %(default)s)"
    )
    parser.add_argument("--table", help="file to write the counts to, as a markdown table")
    parser.add_argument("--json", help="file to write the counts to, as JSON")
    parser.add_argument("--cache", default=CACHE, help="folder of the stand-ins (default: %(default)s)")
    return parser


def entry_point() -> None:
    """Run `main` as a script does."""
    cli.run(main)


if __name__ == "__main__":
    entry_point()
