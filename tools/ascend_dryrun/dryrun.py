"""Compile the graphs of a config for Ascend, without a card and without CANN, and count their kernels.

python tools/ascend_dryrun/dryrun.py --config configs/training/tiny_textual_inversion.yaml --precision float16
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

from gm.config import Config, cli
from gm.errors import UserError
from tools.ascend_dryrun import stand_ins

log = logging.getLogger("gm")

_SECTIONS = ("run", "concept", "data", "training", "loss")


def main() -> None:
    own, rest = _own_flags()
    config = cli.parse(__doc__ or "", _SECTIONS, rest)
    if "MS_SIMULATION_LEVEL" not in os.environ:
        _start_again(stand_ins.build(Path(own.cache)))
    results = compile_all(config, own.precisions or [config.run.precision], own.graphs)
    if own.json:
        Path(own.json).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    from tools.ascend_dryrun import kernels

    for precision, counts in results.items():
        print(f"\n{precision}\n\n{kernels.markdown(counts)}")


def compile_all(config: Config, precisions: list[str], names: list[str] | None) -> dict[str, dict[str, Any]]:
    """Compile the graphs `names` (default: all) in each precision; return the kernels by precision and graph.

    Raises UserError for a graph that does not compile, with MindSpore's message.
    """
    from gm.runtime import backend
    from tools.ascend_dryrun import graphs, kernels

    results: dict[str, dict[str, Any]] = {}
    for precision in precisions:
        run = dataclasses.replace(config.run, device_target="Ascend", ms_mode=0, precision=precision)
        made = graphs.Graphs(config, backend.setup(run))
        results[precision] = {}
        for name in names or graphs.GRAPHS:
            graph = graphs.GRAPHS[name](made)
            started = time.perf_counter()
            try:
                backend.compile_cell(graph.cell, graph=True)(*graph.inputs)
            except Exception as error:
                raise UserError(f"{name} in {precision} does not compile for Ascend: {error}") from error
            results[precision][name] = kernels.count(graph.cell)
            number = sum(results[precision][name].values())
            log.info("%s %s: %d kernels, %.1f s", precision, name, number, time.perf_counter() - started)
    return results


def _own_flags() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--graphs", nargs="+")
    parser.add_argument("--precisions", nargs="+")
    parser.add_argument("--json")
    parser.add_argument("--cache", default=Path.home() / ".cache" / "sdxl-textual-inversion" / "cann-stand-ins")
    return parser.parse_known_args()


def _start_again(libraries: Path) -> None:
    """Replace this process by one that finds the stand-ins: the loader reads its path when a process starts."""
    path = os.pathsep.join(filter(None, (str(libraries), os.environ.get("LD_LIBRARY_PATH"))))
    # No cache of graphs: a kept one would not be compiled. MindSpore's errors only.
    variables = {"LD_LIBRARY_PATH": path, "MS_SIMULATION_LEVEL": "0", "GM_GRAPHS": "", "GLOG_v": "3"}
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **variables})


def entry_point() -> None:
    """Run `main` as a script does."""
    cli.run(main)


if __name__ == "__main__":
    entry_point()
