"""Experiment on the tiny model: optimizers with and without context loss and class word (docs/hyperparameters.md).

    python examples/tiny_sdxl/experiment.py --seeds 2
    python examples/tiny_sdxl/experiment.py --seeds 2 --part 1/2    # and 2/2 in another process

A run trains 400 updates at a constant learning rate. Its embeddings after 50, 100, 200 and 400 updates are measured:
the distance to the concept (identity), and the share of what hard prompts ask for (obedience.py). Each run is appended
to the results when it ends, and finished runs are not repeated. `experiment_report.py` makes tables and a figure.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from examples.tiny_sdxl import measure
from examples.tiny_sdxl.concepts import UnseenConcept
from examples.tiny_sdxl.measure import CONCEPTS
from examples.tiny_sdxl.obedience import OTHER, obedience
from gm import api
from gm.api import Callback, Embedding, StepResult, Toolkit
from gm.config import cli
from gm.config.parser import Parser
from gm.errors import UserError
from gm.training.callbacks.base import TrainerView
from gm.training.callbacks.embedding_checkpoints import current_embeddings

RESULTS = "examples/tiny_sdxl/experiment.jsonl"
UPDATES = (50, 100, 200, 400)
METHODS: dict[str, dict[str, Any]] = {
    "AdamW": {"optimizer": "adamw", "learning_rate": 0.1},
    "AdamW, norm preserved": {"optimizer": "adamw", "learning_rate": 0.1, "preserve_embedding_norm": 1.0},
    "Prodigy": {"optimizer": "prodigy", "learning_rate": 1.0},
    "direction": {"optimizer": "direction", "learning_rate": 0.04},
}
SECOND = {**METHODS["AdamW"], "lr_scheduler": "cosine", "total_step": 200}  # of the second concept of a prompt
CONTEXT_LOSS_WEIGHT = 0.01
SAMPLING = {"sample_step": 20}
FIRST_SEED = 42


@dataclass(frozen=True)
class Run:
    """A run of the experiment, a point of its grid."""

    method: str
    context_loss: float  # its weight
    class_word: bool
    num_vectors: int
    placeholder_token: str
    seed: int


class Snapshots(Callback):
    """Keeps the embedding as it is after each of `UPDATES`, and the times of the updates."""

    def __init__(self) -> None:
        self.embeddings: dict[int, Embedding] = {}
        self.seconds: list[float] = []

    def on_train_begin(self, trainer: TrainerView) -> None:
        self.trainer = trainer

    def on_step_end(self, result: StepResult) -> None:
        self.seconds.append(result.seconds)
        if result.update in UPDATES:
            self.embeddings[result.update] = current_embeddings(self.trainer, result.step)[0]


def runs(seeds: int) -> Iterator[Run]:
    """Return the grid, a seed after the other, and without context loss first."""
    tokens = [target.placeholder_token for target in CONCEPTS]
    for seed in range(FIRST_SEED, FIRST_SEED + seeds):
        for context, vectors, word in itertools.product((0.0, CONTEXT_LOSS_WEIGHT), (1, 4), (False, True)):
            for token, method in itertools.product(tokens, METHODS):
                yield Run(method, context, word, vectors, token, seed)


def measure_run(toolkit: Toolkit, run: Run, others: dict[str, Embedding]) -> dict[str, Any]:
    """Train `run` and return its record; `others` are embeddings of both concepts, for prompts that name two."""
    target = next(each for each in CONCEPTS if each.placeholder_token == run.placeholder_token)
    snapshots = Snapshots()
    api.train(
        toolkit,
        Path("datasets") / target.folder,
        run.placeholder_token,
        callbacks=[snapshots],
        training={
            "total_step": UPDATES[-1],
            "lr_scheduler": "constant",
            "seed": run.seed,
            **METHODS[run.method],
        },
        loss={"context_loss_weight": run.context_loss},
        num_vectors=run.num_vectors,
        initializer_token=target.initializer_token,
        class_word=target.initializer_token if run.class_word else None,
        learnable_property=target.learnable_property,
    )
    text = f"{run.placeholder_token} {target.initializer_token}" if run.class_word else run.placeholder_token
    other = others[OTHER[run.placeholder_token].placeholder_token]
    record: dict[str, Any] = {**asdict(run), "seconds": round(float(np.median(snapshots.seconds)), 4), "updates": {}}
    for update, embedding in snapshots.embeddings.items():
        record["updates"][update] = {
            **measured(toolkit, target, text, [embedding, other]),
            "norm": round(float(np.median(np.linalg.norm(embedding.vectors["clip_g"], axis=1))), 3),
        }
    return record


def measured(toolkit: Toolkit, target: UnseenConcept, text: str, embeddings: list[Embedding]) -> dict[str, float]:
    """Return identity and obedience of `text`, which stands for the concept in prompts."""
    distances = measure.distances(toolkit, target, text, embeddings, **SAMPLING)
    return {
        "distance": round(float(np.median(distances)), 4),
        "obedience": round(obedience(toolkit, target, text, embeddings, **SAMPLING), 4),
    }


def second_concepts(toolkit: Toolkit, folder: Path) -> dict[str, Embedding]:
    """Return an embedding of each concept, of one vector, for prompts that name two; trained once."""
    embeddings = {}
    for target in CONCEPTS:
        path = folder / f"{target.folder}_ti.ckpt"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            api.save_embedding(measure.train_concept(toolkit, target, 1, **SECOND), path)
        embeddings[target.placeholder_token] = api.load_embedding(path)
    return embeddings


def read_results(path: Path) -> list[dict[str, Any]]:
    """Return the records of the finished runs."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def run_of(record: dict[str, Any]) -> Run | None:
    """Return the run of a record, None for the initializer tokens'."""
    if record["method"] not in METHODS:
        return None
    return Run(**{name: record[name] for name in Run.__dataclass_fields__})


def untrained(toolkit: Toolkit, others: dict[str, Embedding]) -> Iterator[dict[str, Any]]:
    """Return a record of each concept's initializer token: how obedient the model is without an embedding."""
    for target in CONCEPTS:
        other = others[OTHER[target.placeholder_token].placeholder_token]
        values = measured(toolkit, target, target.initializer_token, [other])
        yield {"method": "initializer token", "placeholder_token": target.placeholder_token, "updates": {0: values}}


def main() -> None:
    parser = Parser("Compare optimizers on the tiny model, with and without context loss and class word.")
    parser.add_argument("--seeds", type=int, default=2, help="runs per point of the grid (default: %(default)s)")
    parser.add_path("--results", "file of JSON lines (default: %(default)s)", default=RESULTS)
    parser.add_path("--second", "folder of the second concepts (default: %(default)s)", default="runs/experiment")
    parser.add_argument("--part", default="1/1", help="part of the runs, such as 1/2 (default: %(default)s)")
    flags = parser.read()
    match = re.fullmatch(r"(\d+)/(\d+)", flags["part"])
    part, parts = map(int, match.groups()) if match else (0, 0)
    if not 1 <= part <= parts:
        raise UserError(f"--part {flags['part']} is not a part such as 1/2")
    path = Path(flags["results"])
    weight = {"weight": "checkpoints/tiny_sd_xl_base.safetensors"}
    toolkit = api.load("configs/training/tiny_textual_inversion.yaml", run=weight)
    others = second_concepts(toolkit, Path(flags["second"]))
    records = read_results(path)
    if part == 1 and all(run_of(record) for record in records):
        for record in untrained(toolkit, others):
            append(path, record)
    done = {run_of(record) for record in records}
    for number, run in enumerate(runs(flags["seeds"])):
        if number % parts == part - 1 and run not in done:
            append(path, measure_run(toolkit, run, others))


def append(path: Path, record: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")
    print(json.dumps(record), flush=True)


if __name__ == "__main__":
    cli.run(main)
