"""From the command to the first step done: a training run as a person starts it, cold and once more.

    python benchmarks/start.py --size tiny

Cold means that no compiled graph is kept yet; the weights' file may be in the system's cache both times.
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
from benchmarks.models import ROOT, SIZES, Size, prepare
from gm.config import cli
from gm.errors import UserError

_PARTS = ("import and check", "load", "encode images", "compile and first step")
_LOADED, _STEP = "loaded ", "step 1/"  # how the run's own lines begin


def main() -> None:
    parser = report.parser("Time a training run from its command to its first step, without and with kept graphs.")
    parser.add_argument("--mode", default="graph", choices=("graph", "pynative"), help="(default: %(default)s)")
    parser.add_argument("--resolution", type=int, help="pixels a side (default: the size's)")
    flags = parser.read()
    size = SIZES[flags["size"]]
    prepare(size)
    pixels = flags["resolution"] or size.pixels
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        runs = {which: first_step(size, pixels, flags["mode"], folder, which) for which in ("cold", "again")}
        kept = [path.stat().st_size for path in folder.glob("graphs/**/*") if path.is_file()]
    rows = [[which, *(report.seconds(run[part]) for part in (*_PARTS, "total"))] for which, run in runs.items()]
    ratios = [f"{runs['again'][part] / runs['cold'][part]:.3f}" for part in (*_PARTS, "total")]
    text = report.table(["seconds", *_PARTS, "total"], [*rows, ["again/cold", *ratios]])
    text += f"\n\nkept: {len(kept)} files, {sum(kept) / 1e6:.3g} MB"
    title = f"From the command to the first step: {size.name}, {pixels} px, batch 1, 4 rows, {flags['mode']} mode"
    results = {"runs": runs, "ratio": runs["again"]["total"] / runs["cold"]["total"], "kept_bytes": kept}
    report.answer(flags["json"], title, text, results)


def first_step(size: Size, pixels: int, mode: str, folder: Path, which: str) -> dict[str, float]:
    """Start a run of two steps and return the seconds of each part until the first is done; then let it end.

    Its graphs are kept in `folder`/graphs. UserError with its last words if it fails.
    """
    save_path = folder / which
    command = [
        *(sys.executable, "train_textual_inversion.py", "--config", size.yaml, "--weight", str(size.weight)),
        *("--data_path", size.images, "--resolution", str(pixels), "--save_path", str(save_path)),
        *("--train_batch_size", "1", "--gradient_accumulation_steps", "1", "--num_vectors", "4"),
        *("--total_step", "2", "--num_validation_samples", "0", "--ms_mode", "0" if mode == "graph" else "1"),
    ]
    environment = {**os.environ, "GM_GRAPHS": str(folder / "graphs"), "PYTHONUNBUFFERED": "1"}
    print(f"… {which}: {' '.join(command[1:])}", file=sys.stderr, flush=True)
    started, said = time.perf_counter(), []
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as run:
        assert run.stdout
        for line in run.stdout:
            said.append((time.perf_counter() - started, line))
    if run.returncode:
        raise UserError(f"the run ended with code {run.returncode}:", _last(said))
    return _parts(said, save_path / "log.jsonl")


def _parts(said: list[tuple[float, str]], log: Path) -> dict[str, float]:
    """Split the time by the run's own lines, and by the seconds that its log gives its first step."""
    loaded_at, loaded = _line(said, _LOADED)
    match = re.search(r" in ([\d.]+) s", loaded)
    load = float(match[1]) if match else 0.0
    stepped_at, _ = _line(said, _STEP)
    first = json.loads(log.read_text(encoding="utf-8").splitlines()[0])["seconds"]
    seconds = (loaded_at - load, load, stepped_at - first - loaded_at, first)
    return {**dict(zip(_PARTS, seconds, strict=True)), "total": stepped_at}


def _line(said: list[tuple[float, str]], start: str) -> tuple[float, str]:
    """Return when the run said the line that begins with `start`, and the line."""
    for at, line in said:
        if line.startswith(start):
            return at, line
    raise UserError(f"the run did not say {start!r}; it said:", _last(said))


def _last(said: list[tuple[float, str]]) -> str:
    return "".join(line for _, line in said[-20:])


if __name__ == "__main__":
    cli.run(main)
