"""What one worker is asked to do, as it travels on a command line."""

from __future__ import annotations

import dataclasses
import itertools
import json
from dataclasses import dataclass
from typing import Any

from benchmarks.models import SIZES, Size
from gm.config import Config

PROMPT = "a photo of a toy on a table"
PLACEHOLDER = "<measured>"


@dataclass(frozen=True)
class Case:
    """A training step or an image of one size of model; `resolution` is in pixels a side."""

    size: str
    resolution: int
    batch: int = 1
    vectors: int = 4
    accumulation: int = 1
    mode: str = "graph"  # of ours: graph or pynative
    low_memory: str = "auto"  # of ours, as --low_memory of the training script
    steps: int = 20  # of the sampler
    guidance: float = 5.0

    @property
    def model(self) -> Size:
        return SIZES[self.size]

    def written(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    def config(self) -> Config:
        """Return the toolkit's config for it; it never comes to an end by itself."""
        return self.model.config(
            run={"ms_mode": ("graph", "pynative").index(self.mode), "low_memory": self.low_memory},
            concept={
                "data_path": self.model.images,
                "placeholder_token": PLACEHOLDER,
                "num_vectors": self.vectors,
            },
            data={"resolution": self.resolution},
            training={
                "train_batch_size": self.batch,
                "gradient_accumulation_steps": self.accumulation,
                "total_step": 10**9,
            },
            sampling={
                "height": self.resolution,
                "width": self.resolution,
                "sample_step": self.steps,
                "guidance_scale": self.guidance,
                "prompt": PROMPT,
                "negative_prompt": "",
                "batch_size": self.batch,
            },
        )


def read(text: str) -> Case:
    """Return the case that `Case.written` wrote."""
    values: dict[str, Any] = json.loads(text)
    return Case(**values)


def between(ticks: list[float]) -> list[float]:
    """Return the seconds of single sampling steps from when each ended: not of the first, nor of the last.

    The first waits for the text encoders, and the last of ours holds the decoder.
    """
    return [later - sooner for sooner, later in itertools.pairwise(ticks[:-1])]
