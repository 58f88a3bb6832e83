"""Time from the command to the end of the first training step, without and with cached graphs.

    python benchmarks/start.py --size tiny

"cold" has no cached graph; the file of the weights may be in the page cache both times.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import report
from benchmarks.cases import ROOT, SIZES, Size, as_flags, prepare
from gm.config import cli
from gm.errors import UserError

_PARTS = ("import and check", "load", "encode images", "compile and first step")
_LOADED, _STEP = "loaded ", "step 1/"  # starts of lines that the run prints


def main() -> None:
    parser = report.parser("Time a training run from its command to its first step, without and with cached graphs.")
    parser.add_argument("--mode", default="graph", choices=("graph", "pynative"), help="(default: %(default)s)")
    report.add_resolution(parser)
    flags = parser.read()
    size = SIZES[flags["size"]]
    prepare(size)
    pixels = report.resolution(flags)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        runs = {which: first_step(size, pixels, flags["mode"], folder, which) for which in ("cold", "again")}
        cached = [path.stat().st_size for path in folder.glob("graphs/**/*") if path.is_file()]
    rows = [[which, *(report.seconds(run[part]) for part in (*_PARTS, "total"))] for which, run in runs.items()]
    ratios = [f"{runs['again'][part] / runs['cold'][part]:.3f}" for part in (*_PARTS, "total")]
    text = report.table(["seconds", *_PARTS, "total"], [*rows, ["again/cold", *ratios]])
    text += f"\n\ncached: {len(cached)} files, {sum(cached) / 1e6:.3g} MB"
    title = f"From the command to the first step: {size.name}, {pixels} px, batch 1, 4 vectors, {flags['mode']} mode"
    results = {"runs": runs, "ratio": runs["again"]["total"] / runs["cold"]["total"], "cached_bytes": cached}
    report.answer(flags["json"], title, text, results)


def first_step(size: Size, pixels: int, mode: str, folder: Path, which: str) -> dict[str, float]:
    """Run two training steps and return the seconds of each part up to the end of the first.

    Graphs are cached in `folder`/graphs. UserError with the end of its output if it fails.
    """
    save_path = folder / which
    options = {
        "config": size.yaml,
        "weight": size.weight,
        "data_path": size.images,
        "resolution": pixels,
        "save_path": save_path,
        "train_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "num_vectors": 4,
        "total_step": 2,
        "num_validation_samples": 0,
        "ms_mode": 0 if mode == "graph" else 1,
    }
    command = [sys.executable, "train_textual_inversion.py", *as_flags(options)]
    environment = {**os.environ, "GM_GRAPHS": str(folder / "graphs"), "PYTHONUNBUFFERED": "1"}
    print(f"… {which}: {' '.join(command[1:])}", file=sys.stderr, flush=True)
    output: list[tuple[float, str]] = []
    started = time.perf_counter()
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as run:
        assert run.stdout
        for line in run.stdout:
            output.append((time.perf_counter() - started, line))
    if run.returncode:
        raise UserError(f"the run ended with code {run.returncode}:", _last(output))
    return _parts(output, save_path / "log.jsonl")


def _parts(output: list[tuple[float, str]], log: Path) -> dict[str, float]:
    """Split the time by the lines of the run and the seconds of the first step in its log."""
    loaded_at, loaded = _line(output, _LOADED)
    match = re.search(r" in ([\d.]+) s", loaded)
    load = float(match[1]) if match else 0.0
    stepped_at, _ = _line(output, _STEP)
    first = json.loads(log.read_text(encoding="utf-8").splitlines()[0])["seconds"]
    seconds = (loaded_at - load, load, stepped_at - first - loaded_at, first)
    return {**dict(zip(_PARTS, seconds, strict=True)), "total": stepped_at}


def _line(output: list[tuple[float, str]], start: str) -> tuple[float, str]:
    """Return the time and the text of the first line that starts with `start`."""
    for at, line in output:
        if line.startswith(start):
            return at, line
    raise UserError(f"the run did not print {start!r}; the end of its output:", _last(output))


def _last(output: list[tuple[float, str]]) -> str:
    return "".join(line for _, line in output[-20:])


if __name__ == "__main__":
    cli.run(main)
