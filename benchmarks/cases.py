"""The sizes of model that are measured, with their weights, and a case as it travels on a command line."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gm import config as configuration
from gm.config import Config
from gm.config.training import MAX_STEPS
from gm.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = ROOT / "benchmarks" / "weights"
PROMPT = "a photo of a toy on a table"
PLACEHOLDER = "<measured>"
CLASS_WORD = "toy"
PRODUCT_SIDE = 2048  # of the matrices whose product measures the machine's speed


@dataclass(frozen=True)
class Size:
    """A size of model and the defaults of its measurements; paths are relative to the repository."""

    name: str
    yaml: str
    pixels: int
    images: str
    together: bool  # whether two processes that hold it fit into the memory side by side
    warm_ups: int  # pieces of work before the measured ones
    rounds: int
    pieces: int  # of work a round, by each side
    image_rounds: int  # where a piece of work is an image, which is many steps
    published: str = ""  # existing checkpoint; default: random weights

    @property
    def source(self) -> Path:
        """Float16 checkpoint in the published format, for the reference."""
        return ROOT / self.published if self.published else WEIGHTS / f"{self.name}.safetensors"

    @property
    def weight(self) -> Path:
        """The `.ckpt` converted from it, for the toolkit."""
        return WEIGHTS / f"{self.name}.ckpt"

    def config(self, **sections: dict[str, Any]) -> Config:
        """Return the config on the CPU, with single options replaced."""
        run = {"device_target": "CPU", "weight": str(self.weight), **sections.pop("run", {})}
        return configuration.load(ROOT / self.yaml, {"run": run, **sections})


# In a graph the CPU kernels try other numbers of threads during their first tens of runs.
SIZES = {
    "tiny": Size(
        "tiny",
        "configs/training/tiny_textual_inversion.yaml",
        pixels=64,
        images="datasets/humbug",
        together=True,
        warm_ups=40,
        rounds=40,
        pieces=1,
        image_rounds=10,
        published="checkpoints/tiny_sd_xl_base.safetensors",
    ),
    "small": Size(
        "small",
        "benchmarks/small.yaml",
        pixels=128,
        images="datasets/cat_toy",
        together=True,
        warm_ups=40,
        rounds=20,
        pieces=1,
        image_rounds=5,
    ),
    "full": Size(
        "full",
        "configs/training/sd_xl_base_finetune_textual_inversion.yaml",
        pixels=256,
        images="datasets/cat_toy",
        together=False,
        warm_ups=3,
        rounds=2,
        pieces=5,
        image_rounds=2,
    ),
    "sd1.5": Size(
        "sd1.5",
        "configs/training/sd_v1.5_textual_inversion.yaml",
        pixels=512,
        images="datasets/cat_toy",
        together=False,
        warm_ups=3,
        rounds=2,
        pieces=5,
        image_rounds=2,
    ),
}


# How the reference runs: all in float32; UNet and VAE in bfloat16, the rest under autocast, as --mixed_precision bf16
# of diffusers' scripts; and each with the UNet through torch.compile, which needs a C++ compiler.
REFERENCES = ("float32", "bfloat16", "float32-compiled", "bfloat16-compiled")


@dataclass(frozen=True)
class Case:
    """A training step or an image of one size of model; `resolution` is the side in pixels."""

    size: str
    resolution: int
    batch: int = 1
    vectors: int = 4
    accumulation: int = 1
    mode: str = "graph"  # of the toolkit: graph or pynative
    low_memory: str = "auto"  # of the toolkit
    precision: str = "float32"  # of the toolkit
    reference: str = "float32"  # how diffusers runs: of REFERENCES
    steps: int = 20  # of the sampler
    guidance: float = 5.0
    context_loss: float = 0.0  # its weight

    @property
    def model(self) -> Size:
        return SIZES[self.size]

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    def config(self) -> Config:
        """Return the toolkit's config, with an unlimited number of steps."""
        return self.model.config(
            run={
                "ms_mode": ("graph", "pynative").index(self.mode),
                "low_memory": self.low_memory,
                "precision": self.precision,
            },
            concept={
                "data_path": self.model.images,
                "placeholder_token": PLACEHOLDER,
                "num_vectors": self.vectors,
                **({"initializer_token": CLASS_WORD} if self.context_loss else {}),
            },
            loss={"context_loss_weight": self.context_loss},
            data={"resolution": self.resolution},
            training={
                "optimizer": "adamw",  # as the programs beside it
                "train_batch_size": self.batch,
                "gradient_accumulation_steps": self.accumulation,
                "total_step": MAX_STEPS,
            },
            sampling={
                "height": self.resolution,
                "width": self.resolution,
                "sampler": "euler",
                "schedule": "legacy",
                "sample_step": self.steps,
                "guidance_scale": self.guidance,
                "prompt": PROMPT,
                "negative_prompt": "",
                "batch_size": self.batch,
            },
        )


def lift_onednn_limit() -> None:
    """Let PyTorch's oneDNN use all instructions; call it before the first product.

    With MindSpore 2.9 `gm` limits oneDNN to AVX2 (`gm.runtime.environment`), where PyTorch multiplies bfloat16 in a
    plain loop: a product of `product_speed` takes minutes.
    """
    os.environ["ONEDNN_MAX_CPU_ISA"] = "DEFAULT"


def product_speed(multiply: Callable[[], Any]) -> float:
    """Return the FLOPs a second of `multiply`, a product 2048³, in the median of ten."""
    seconds = []
    for _ in range(12):
        started = time.perf_counter()
        multiply()
        seconds.append(time.perf_counter() - started)
    return 2 * PRODUCT_SIDE**3 / statistics.median(seconds[2:])


def from_json(text: str) -> Case:
    """Return the case that `Case.to_json` wrote."""
    values: dict[str, Any] = json.loads(text)
    return Case(**values)


def between(ticks: list[float]) -> list[float]:
    """Return the seconds of single sampling steps from the times of their ends, without the first and the last.

    The first waits for the text encoders, and the last of this toolkit includes the decoder.
    """
    return [later - earlier for earlier, later in itertools.pairwise(ticks[:-1])]


def prepare(size: Size) -> None:
    """Create missing weights; those of SDXL take minutes and 14 GB of disk. UserError if that fails."""
    if not size.source.exists():
        _run("examples/tiny_sdxl/random_weights.py", "--config", size.yaml, "--target", str(size.source))
    if not size.weight.exists() or size.weight.stat().st_mtime < size.source.stat().st_mtime:
        convert = ("--config", size.yaml, "--source", str(size.source), "--target", str(size.weight), "--overwrite")
        _run("tools/convert_weights/convert.py", *convert)


def as_flags(options: Mapping[str, object]) -> list[str]:
    """Return `options` as command-line flags."""
    return [text for name, value in options.items() for text in (f"--{name}", str(value))]


def _run(*command: str) -> None:
    # A separate process keeps the memory of this one small.
    WEIGHTS.mkdir(exist_ok=True)
    result = subprocess.run([sys.executable, *command], cwd=ROOT, stdout=sys.stderr, check=False)
    if result.returncode:
        raise UserError(f"{command[0]} failed, see its message above; it writes weights to {WEIGHTS}")
