"""The UNet alone against mindone's: forward, and back to the text, one image, float32, in turns.

    python -m venv /tmp/mindone && /tmp/mindone/bin/pip install --no-deps mindone==0.5.0
    /tmp/mindone/bin/pip install mindspore==2.8.0 "numpy<2" transformers==4.57.1 omegaconf pillow
    python benchmarks/unet.py --size full --python /tmp/mindone/bin/python

mindone needs other versions of its libraries than the tests, hence an environment of its own.
"""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks import report
from benchmarks.alternation import alternate, worker
from benchmarks.cases import Case
from benchmarks.models import SIZES
from gm.config import cli
from gm.errors import UserError


def main() -> None:
    parser = report.parser("Time the UNet, forward and back, against mindone's.", "full")
    parser.add_argument("--python", metavar="PATH", help="interpreter of an environment that has mindone")
    parser.add_argument("--mode", default="graph", choices=("graph", "pynative"), help="(default: %(default)s)")
    report.add_turns(parser)
    report.add_graphs(parser)
    flags = parser.read()
    size = SIZES[flags["size"]]
    if not flags["python"] or not Path(flags["python"]).is_file():
        raise UserError(
            "--python must be the interpreter of an environment with mindone 0.5.0; see the head of this file"
        )
    turns = report.turns(flags, size)
    report.choose_graphs(flags)
    case = Case(size.name, size.pixels, mode=flags["mode"])
    from tests.reference.networks import unet_config  # after the flags: it waits for PyTorch

    model = case.config().model
    theirs = json.dumps({**unet_config(model), "sample_size": size.pixels // model.vae.downsample_factor})
    sides = {
        "ours": worker("benchmarks.ours", "unet", case.written()),
        "reference": [flags["python"], "-m", "benchmarks.mindone_unet", flags["mode"], theirs],
    }
    measured = alternate(sides, **turns, together=size.together)
    results = {"case": vars(case), "graphs": flags["graphs"], **report.ratios(measured)}
    time, memory = results["ratio_of_medians"], results["ratio_of_peaks"]
    text = f"{report.sides(measured)}\n\nours/reference: {time:.3f} of the time, {memory:.3f} of the memory"
    title = (
        f"UNet, forward and back: {size.name}, {size.pixels} px, {case.mode} mode, graphs {flags['graphs']}; mindone's"
    )
    report.answer(flags["json"], title, text, results)


if __name__ == "__main__":
    cli.run(main)
