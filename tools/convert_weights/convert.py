"""Convert SDXL weights: the published .safetensors, a diffusers folder or a .ckpt → .ckpt or .safetensors.

python tools/convert_weights/convert.py --source sd_xl_base_1.0.safetensors --target sd_xl_base_1.0_ms.ckpt
"""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path
from typing import Any

from gm import config
from gm.checkpoints import containers, loading
from gm.config import cli
from gm.errors import UserError, suggestion

_GIGABYTE = 1e9
_SECONDS_BETWEEN_REPORTS = 0.2


class _Progress:
    """One line on a terminal's standard error that counts up; nothing elsewhere."""

    def __init__(self) -> None:
        self.shown = 0.0

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if sys.stderr.isatty() and (done == total or now - self.shown > _SECONDS_BETWEEN_REPORTS):
            self.shown = now
            text = f"\r{done / total:4.0%}  {done / _GIGABYTE:.2f} of {total / _GIGABYTE:.2f} GB"
            print(text, end="\n" if done == total else "", file=sys.stderr, flush=True)


def main() -> None:
    start = time.monotonic()
    flags = _flags()
    source, target = Path(flags["source"]), Path(flags["target"])
    _check(source, target, flags["overwrite"] == "true")
    model = config.load(flags["config"]).model
    loading.convert(source, target, model, flags["dtype"], _Progress())
    print(
        f"wrote {target}: {flags['dtype']}, {target.stat().st_size / _GIGABYTE:.2f} GB "
        f"in {time.monotonic() - start:.0f} s, {_peak_memory() / _GIGABYTE:.1f} GB of memory at most"
    )


def _flags() -> dict[str, Any]:
    parser = cli.Parser("Convert SDXL weights into another format.", ("source", "target"))
    parser.add_argument("--source", help="published .safetensors file, diffusers folder, or .ckpt file")
    parser.add_argument("--target", help="file to write; .ckpt gets MindSpore's names, .safetensors the published ones")
    parser.add_config(meaning="YAML file whose model section describes the weights")
    parser.add_argument("--dtype", default="float16", choices=("float16", "float32"), help="(default: %(default)s)")
    parser.add_overwrite()
    return parser.read()


def _check(source: Path, target: Path, overwrite: bool) -> None:
    """Refuse at once what would be refused after minutes, or would cost the user a file."""
    if not source.exists():
        raise UserError(f"--source {source} is not there{suggestion(source.name, _neighbours(source))}")
    if target.suffix not in containers.ENDINGS:
        raise UserError(f"--target {target} must end in {' or '.join(containers.ENDINGS)}, which says what to write")
    if target.exists() and target.samefile(source):
        raise UserError("--source and --target are the same file; give another target")
    if target.exists() and not overwrite:
        raise UserError(f"--target {target} already exists; --overwrite replaces it")


def _neighbours(path: Path) -> list[str]:
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
