"""Peak memory of converting, loading, training and sampling, each in a process of its own.

    python benchmarks/memory.py --size tiny

Converting, training and sampling are the scripts as a person runs them; graphs are compiled, none is kept.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import costs, report
from benchmarks.alternation import Process, worker
from benchmarks.cases import PROMPT, Case
from benchmarks.models import ROOT, SIZES, Size, prepare
from gm.config import cli
from gm.errors import UserError

_WORDS = 2000  # characters of a failed command's output that are shown


def main() -> None:
    parser = report.parser("Measure the peak memory of converting, loading, training and sampling.")
    report.add_mode(parser)
    parser.add_argument("--resolution", type=int, help="pixels a side (default: the size's)")
    parser.add_argument("--steps", type=int, default=3, help="of training, and of the sampler (default: %(default)s)")
    flags = parser.read()
    size = SIZES[flags["size"]]
    prepare(size)
    case = Case(size.name, flags["resolution"] or size.pixels, mode=flags["mode"], low_memory=flags["low_memory"])
    model = float32_size(case)
    peaks: dict[str, int] = {}
    with tempfile.TemporaryDirectory(dir=size.weight.parent) as folder:
        for name, command in commands(case, flags["steps"], Path(folder)).items():
            print(f"… {name}", file=sys.stderr, flush=True)
            peaks[name] = peak_of(command)
            for made in Path(folder).glob("*.ckpt"):
                made.unlink()  # the disk need not hold two
    with Process("load", worker("benchmarks.ours", "load", case.written())) as process:
        process.facts()
        process.ask()
        peaks["load"] = process.end()["peak_of_process"]
    rows = [[name, report.gigabytes(peak), f"{peak / model:.2f}"] for name, peak in peaks.items()]
    text = report.table(["", "peak GB", "times the model's float32 size"], rows)
    title = f"Memory: {size.name}, {case.resolution} px, {flags['steps']} steps, {case.mode} mode, "
    title += f"low memory {case.low_memory}; the model is "
    results: dict[str, Any] = {"case": vars(case), "model": model, "peaks": peaks}
    report.answer(flags["json"], f"{title}{report.gigabytes(model)} GB in float32", text, results)


def float32_size(case: Case) -> int:
    """Return the bytes of all weights in float32: both encoders, the UNet, the autoencoder."""
    model = case.config().model
    networks = [*costs.training(model, case.resolution, 1, "float32").values()]
    networks += [
        costs.sampling(model, case.resolution, 1, "float32")["decoder"],
        costs.encoding(model, case.resolution),
    ]
    return sum(network.weights for network in networks)


def commands(case: Case, steps: int, folder: Path) -> dict[str, list[str]]:
    """Return the arguments of Python, by what they do; what they write goes to `folder`."""
    size, pixels = case.model, str(case.resolution)
    mode = ("--ms_mode", "0" if case.mode == "graph" else "1", "--low_memory", case.low_memory)
    ours = ("--config", size.yaml, "--weight", str(size.weight), *mode)
    made = {"import the toolkit": ["-c", "from gm import api"]}
    made |= {f"convert to {dtype}": _conversion(size, dtype, folder) for dtype in ("float16", "float32")}
    made["train"] = [
        *("train_textual_inversion.py", *ours, "--data_path", size.images, "--resolution", pixels),
        *("--train_batch_size", "1", "--num_vectors", "4", "--gradient_accumulation_steps", "1"),
        *("--num_validation_samples", "0", "--total_step", str(steps), "--save_path", str(folder / "run")),
    ]
    made["sample"] = [
        *("demo/sampling_without_streamlit.py", *ours, "--prompt", PROMPT, "--height", pixels, "--width", pixels),
        *("--sample_step", str(steps), "--guidance_scale", "5", "--num_cols", "1", "--save_path", str(folder / "out")),
    ]
    return made


def peak_of(command: list[str]) -> int:
    """Run Python in this repository; return the most bytes that it held. UserError if it fails."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
        environment = {**os.environ, "GM_GRAPHS": ""}
        run = subprocess.Popen([sys.executable, *command], cwd=ROOT, env=environment, stdout=said, stderr=said)
        _, status, usage = os.wait4(run.pid, 0)
        run.returncode = os.waitstatus_to_exitcode(status)
        if run.returncode:
            said.seek(0)
            last = said.read()[-_WORDS:]
            raise UserError(f"{command[0]} ended with code {run.returncode}; the end of what it said:", last)
    return usage.ru_maxrss * 1024


def _conversion(size: Size, dtype: str, folder: Path) -> list[str]:
    target = folder / f"{dtype}.ckpt"
    return [
        *("tools/convert_weights/convert.py", "--config", size.yaml, "--source", str(size.source)),
        *("--target", str(target), "--dtype", dtype),
    ]


if __name__ == "__main__":
    cli.run(main)
