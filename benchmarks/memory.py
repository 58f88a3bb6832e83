"""Peak memory of conversion, loading, training and sampling, each in a process of its own.

    python benchmarks/memory.py --size tiny

Conversion, training and sampling run the user's scripts; graphs are compiled, none is cached.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import costs, report
from benchmarks.cases import PROMPT, ROOT, SIZES, Case, Size, as_flags, prepare
from benchmarks.workers import Process, worker
from gm.config import cli
from gm.errors import UserError

_SHOWN = 2000  # characters of a failed command's output in the message


def main() -> None:
    parser = report.parser("Measure the peak memory of converting, loading, training and sampling.")
    report.add_mode(parser)
    report.add_resolution(parser)
    parser.add_argument("--steps", type=int, default=3, help="of training, and of the sampler (default: %(default)s)")
    flags = parser.read()
    size = SIZES[flags["size"]]
    prepare(size)
    case = report.case(flags)
    model = float32_size(case)
    peaks: dict[str, int] = {}
    with tempfile.TemporaryDirectory(dir=size.weight.parent) as folder:
        for name, command in commands(case, flags["steps"], Path(folder)).items():
            print(f"… {name}", file=sys.stderr, flush=True)
            peaks[name] = peak_of(command)
            for converted in Path(folder).glob("*.ckpt"):
                converted.unlink()  # the disk need not hold two
    with Process("load", worker("benchmarks.ours", "load", case.to_json())) as process:
        process.facts()
        process.work()
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
    """Return arguments of Python by name of the task; outputs go to `folder`."""
    size = case.model
    common = {
        "config": size.yaml,
        "weight": size.weight,
        "ms_mode": 0 if case.mode == "graph" else 1,
        "low_memory": case.low_memory,
    }
    training = {
        "data_path": size.images,
        "resolution": case.resolution,
        "train_batch_size": 1,
        "num_vectors": 4,
        "gradient_accumulation_steps": 1,
        "num_validation_samples": 0,
        "total_step": steps,
        "save_path": folder / "run",
    }
    sampling = {
        "prompt": PROMPT,
        "height": case.resolution,
        "width": case.resolution,
        "sample_step": steps,
        "guidance_scale": 5,
        "num_cols": 1,
        "save_path": folder / "out",
    }
    return {
        "import the toolkit": ["-c", "from gm import api"],
        "convert to float16": _conversion(size, "float16", folder),
        "convert to float32": _conversion(size, "float32", folder),
        "train": ["train_textual_inversion.py", *as_flags({**common, **training})],
        "sample": ["demo/sampling_without_streamlit.py", *as_flags({**common, **sampling})],
    }


def peak_of(command: list[str]) -> int:
    """Run Python in this repository and return its peak memory in bytes. UserError if it fails."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        environment = {**os.environ, "GM_GRAPHS": ""}
        run = subprocess.Popen([sys.executable, *command], cwd=ROOT, env=environment, stdout=output, stderr=output)
        _, status, usage = os.wait4(run.pid, 0)
        run.returncode = os.waitstatus_to_exitcode(status)
        if run.returncode:
            output.seek(0)
            last = output.read()[-_SHOWN:]
            raise UserError(f"{command[0]} ended with code {run.returncode}; the end of its output:", last)
    return usage.ru_maxrss * 1024


def _conversion(size: Size, dtype: str, folder: Path) -> list[str]:
    options = {"config": size.yaml, "source": size.source, "target": folder / f"{dtype}.ckpt", "dtype": dtype}
    return ["tools/convert_weights/convert.py", *as_flags(options)]


if __name__ == "__main__":
    cli.run(main)
