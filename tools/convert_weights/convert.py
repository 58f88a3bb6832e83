"""Convert weights of SDXL, Stable Diffusion 1 or 2: a file or diffusers folder → .ckpt or .safetensors.

python tools/convert_weights/convert.py --source sd_xl_base_1.0.safetensors --target sd_xl_base_1.0_ms.ckpt
"""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gm import config
from gm.checkpoints import config_choice, containers, loading, networks
from gm.checkpoints.networks import WeightFiles
from gm.config import cli
from gm.config.parser import Parser
from gm.errors import UserError, did_you_mean
from gm.lora import files as lora_files
from gm.lora import merging

_GIGABYTE = 1e9


def main() -> None:
    start = time.monotonic()
    flags = _parse_flags()
    source, target = Path(flags["source"]), Path(flags["target"])
    files = WeightFiles(source, {name: flags[name] for name in networks.NETWORKS if flags[name]})
    _check_paths(files, target, flags["overwrite"] == "true")
    lora_files.parse_all(flags["lora_weight"])
    path, sections = (flags["config"], {}) if flags["config"] else config_choice.config_for(source)
    model = config.load(path, sections).model
    # disable=None: no bar unless standard error is a terminal; delay: none for an error at the start.
    with tqdm(unit="B", unit_scale=True, disable=None, delay=0.2) as bar:

        def show_progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        loading.convert(
            files,
            target,
            model,
            flags["dtype"],
            show_progress,
            lambda shapes: merging.prepare(flags["lora_weight"], shapes, model),
        )
    print(
        f"wrote {target}: {flags['dtype']}, {target.stat().st_size / _GIGABYTE:.2f} GB "
        f"in {time.monotonic() - start:.0f} s, {_peak_memory() / _GIGABYTE:.1f} GB of memory at most"
    )


def _parse_flags() -> dict[str, Any]:
    parser = Parser("Convert weights of SDXL, Stable Diffusion 1 or 2 into another format.", ("source", "target"))
    parser.add_path("--source", "single file (.safetensors, or .ckpt of MindSpore or PyTorch) or diffusers folder")
    parser.add_path(
        "--target", "file to write; .ckpt with MindSpore's parameter names, .safetensors with the published keys"
    )
    for name, network in networks.NETWORKS.items():
        parser.add_path(f"--{name}", f"{network.title} in place of the source's, or where it has none: file or folder")
    parser.add_path(
        "--lora_weight",
        "LoRA files to merge into the weights, any number, each FILE or FILE:strength",
        nargs="+",
        default=[],
    )
    parser.add_config(meaning="YAML file whose model section describes the weights; without it, that of their family")
    parser.set_defaults(config=None)
    parser.add_argument(
        "--dtype", default="float16", choices=("float16", "float32"), help="dtype to write (default: %(default)s)"
    )
    parser.add_overwrite()
    return parser.read()


def _check_paths(files: WeightFiles, target: Path, overwrite: bool) -> None:
    """Raise UserError at once for what would fail after minutes, or would cost the user a file."""
    source = Path(files.checkpoint)
    if not source.exists():
        raise UserError(f"--source {source} does not exist{did_you_mean(source.name, _siblings(source))}")
    if target.suffix not in containers.SUFFIXES:
        raise UserError(f"--target {target} must end in {' or '.join(containers.SUFFIXES)}, which says what to write")
    networks.check_paths(files.networks)
    if target.exists() and target.samefile(source):
        raise UserError("--source and --target are the same file; give another target")
    if target.exists() and not overwrite:
        raise UserError(f"--target {target} already exists; --overwrite replaces it")


def _siblings(path: Path) -> list[str]:
    return [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []


def _peak_memory() -> int:
    """Return the most bytes of memory that this process has held."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def entry_point() -> None:
    """Run `main` as the console script gm-convert does."""
    cli.run(main)


if __name__ == "__main__":
    entry_point()
