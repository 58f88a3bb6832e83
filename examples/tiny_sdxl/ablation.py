"""Ablation of training options on the tiny model, one option at a time (docs/hyperparameters.md).

python examples/tiny_sdxl/ablation.py --seeds 2

Every run is appended to the results when it ends, and finished runs are not repeated. `--table True` prints the
results as Markdown and trains nothing.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from examples.tiny_sdxl import measure
from examples.tiny_sdxl.concepts import UnseenConcept
from examples.tiny_sdxl.measure import CONCEPTS
from gm import api
from gm.api import Toolkit
from gm.config import cli
from gm.config.parser import Parser

RESULTS = "examples/tiny_sdxl/ablation.jsonl"
PHRASES = {"<humbug>": "pink striped heart", "<confetti>": "red outline yellow spots"}
OTHERS = {"<humbug>": "blue", "<confetti>": "circle"}


@dataclass(frozen=True)
class Change:
    """Options that differ from `BASE`; a dict as an option of the concept has one value per concept."""

    option: str
    level: str
    concept: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    loss: dict[str, Any] = field(default_factory=dict)

    def concept_of(self, target: UnseenConcept) -> dict[str, Any]:
        """Return the options of the concept `target`."""
        return {name: v[target.placeholder_token] if isinstance(v, dict) else v for name, v in self.concept.items()}


BASE = Change(
    "to compare with",
    "one word, 4 vectors, 0.05",
    {"num_vectors": 4},
    {
        "optimizer": "adamw",
        "lr_scheduler": "cosine",
        "total_step": 200,
        "learning_rate": 5e-2,
        "preserve_embedding_norm": 0.0,
    },
    {"min_snr_gamma": 0.0},
)
CHANGES = (
    BASE,
    Change("initialisation", "random vectors", {"initializer_token": None}),
    Change("initialisation", "a phrase", {"initializer_token": PHRASES}),
    Change("initialisation", "a word for something else", {"initializer_token": OTHERS}),
    *(Change("vectors", str(n), {"num_vectors": n}) for n in (1, 2, 8)),
    *(Change("learning rate", f"{rate:g}", training={"learning_rate": rate}) for rate in (5e-3, 1.5e-2, 1.5e-1)),
    *(Change("min-SNR", f"{gamma:g}", loss={"min_snr_gamma": gamma}) for gamma in (1.0, 5.0)),
    *(Change("norm pull", f"{pull:g}", training={"preserve_embedding_norm": pull}) for pull in (0.1, 1.0)),
    Change(
        "together",
        "a phrase, 8 vectors, 0.15, min-SNR 5",
        {"initializer_token": PHRASES, "num_vectors": 8},
        {"learning_rate": 1.5e-1},
        {"min_snr_gamma": 5.0},
    ),
)


def measure_change(toolkit: Toolkit, target: UnseenConcept, change: Change, seed: int) -> dict[str, Any]:
    """Train `target` with `change` and return the measurements."""
    options = {"initializer_token": target.initializer_token, "learnable_property": target.learnable_property}
    embedding = api.train(
        toolkit,
        Path("datasets") / target.folder,
        target.placeholder_token,
        training={"seed": seed, **BASE.training, **change.training},
        loss={**BASE.loss, **change.loss},
        **{**options, **BASE.concept, **change.concept_of(target)},
    )
    after = measure.distances(toolkit, target, target.placeholder_token, [embedding])
    return {
        "placeholder_token": target.placeholder_token,
        "option": change.option,
        "level": change.level,
        "seed": seed,
        "distance": round(float(np.median(after)), 4),
        "worst": round(float(after.max()), 4),
        "backdrop_accuracy": measure.backdrop_accuracy(toolkit, target, embedding),
        "norm": round(float(np.median(np.linalg.norm(embedding.vectors["clip_l"], axis=1))), 3),
    }


def table(records: Sequence[dict[str, Any]]) -> str:
    """Return a Markdown table: median distance over the seeds, its range, and the backdrop accuracy."""
    lines = ["| | | " + " | ".join(f"`{target.placeholder_token}`: distance | backdrop" for target in CONCEPTS) + " |"]
    lines.append("|---|---|" + "---|---|" * len(CONCEPTS))
    for change in CHANGES:
        cells = []
        for target in CONCEPTS:
            key = (target.placeholder_token, change.option, change.level)
            matching = [r for r in records if (r["placeholder_token"], r["option"], r["level"]) == key]
            if not matching:
                cells.append("– | –")
                continue
            distances = sorted(r["distance"] for r in matching)
            accuracy = float(np.mean([r["backdrop_accuracy"] for r in matching]))
            cells.append(
                f"{np.median(distances):.2f} ({distances[0]:.2f}–{distances[-1]:.2f}) | {100 * accuracy:.0f} %"
            )
        lines.append(f"| {change.option} | {change.level} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = Parser("Ablation of training options on the tiny model, one at a time.")
    parser.add_argument("--seeds", type=int, default=2, help="runs per change (default: %(default)s)")
    parser.add_path("--results", "file of JSON lines (default: %(default)s)", default=RESULTS)
    parser.add_argument("--table", default="False", choices=("True", "False"), help="print the table, train nothing")
    flags = parser.read()
    path = Path(flags["results"])
    records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    if flags["table"] == "True":
        print(table(records))
        return
    done = {(r["placeholder_token"], r["option"], r["level"], r["seed"]) for r in records}
    weight = {"weight": "checkpoints/tiny_sd_xl_base.safetensors"}
    toolkit = api.load("configs/training/tiny_textual_inversion.yaml", run=weight)
    for seed in range(42, 42 + flags["seeds"]):
        for change in CHANGES:
            for target in CONCEPTS:
                if (target.placeholder_token, change.option, change.level, seed) in done:
                    continue
                record = measure_change(toolkit, target, change, seed)
                with path.open("a") as file:
                    file.write(json.dumps(record) + "\n")
                print(json.dumps(record), flush=True)


if __name__ == "__main__":
    cli.run(main)
