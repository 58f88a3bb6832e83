"""The three sizes of model that are measured, and their weights, made when first asked for."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gm import config as configuration
from gm.config import Config
from gm.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = ROOT / "benchmarks" / "weights"


@dataclass(frozen=True)
class Size:
    """A model and what is done with it; paths are relative to the repository."""

    name: str
    yaml: str
    pixels: int
    images: str
    together: bool  # whether two processes that hold it fit into the memory side by side
    warm_ups: int  # pieces of work before those that count
    rounds: int
    pieces: int  # of work a round, by each side
    published: str = ""  # a checkpoint that already exists; without it random weights are drawn

    @property
    def source(self) -> Path:
        """The checkpoint in the published format, float16, which the reference reads."""
        return ROOT / self.published if self.published else WEIGHTS / f"{self.name}.safetensors"

    @property
    def weight(self) -> Path:
        """The `.ckpt` that is converted from it, which the toolkit reads."""
        return WEIGHTS / f"{self.name}.ckpt"

    def config(self, **sections: dict[str, Any]) -> Config:
        """Return the config on the CPU, with single options replaced."""
        run = {"device_target": "CPU", "weight": str(self.weight), **sections.pop("run", {})}
        return configuration.load(ROOT / self.yaml, {"run": run, **sections})


# In a graph the CPU kernels try other numbers of threads during their first tens of runs.
SIZES = {
    size.name: size
    for size in (
        Size(
            *("tiny", "configs/training/tiny_textual_inversion.yaml", 64, "datasets/humbug"),
            *(True, 40, 40, 1),
            published="checkpoints/tiny_sd_xl_base.safetensors",
        ),
        Size("small", "benchmarks/small.yaml", 128, "datasets/cat_toy", True, 40, 20, 1),
        Size(
            *("full", "configs/training/sd_xl_base_finetune_textual_inversion.yaml", 256, "datasets/cat_toy"),
            *(False, 3, 2, 5),
        ),
    )
}


def prepare(size: Size) -> None:
    """Make the weights that are not there; full size takes minutes and 14 GB of disk. UserError if that fails."""
    if not size.source.exists():
        _run("examples/tiny_sdxl/random_weights.py", "--config", size.yaml, "--target", str(size.source))
    if not size.weight.exists() or size.weight.stat().st_mtime < size.source.stat().st_mtime:
        convert = ("--config", size.yaml, "--source", str(size.source), "--target", str(size.weight), "--overwrite")
        _run("tools/convert_weights/convert.py", *convert)


def _run(*command: str) -> None:
    # Of its own, so that what measures stays small.
    WEIGHTS.mkdir(exist_ok=True)
    ended = subprocess.run([sys.executable, *command], cwd=ROOT, stdout=sys.stderr, check=False)
    if ended.returncode:
        raise UserError(f"{command[0]} failed, as it says above; weights are made in {WEIGHTS}")
