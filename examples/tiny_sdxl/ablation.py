"""What each option of learning does, one at a time, on the tiny model and by the judge (docs/hyperparameters.md).

python examples/tiny_sdxl/ablation.py --seeds 2

Every run is appended to the results as it ends, and those that are there already are not made again. `--table True`
prints what is there as Markdown and learns nothing.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from examples.tiny_sdxl import measure
from examples.tiny_sdxl.concepts import Unseen
from examples.tiny_sdxl.measure import THINGS
from gm import api
from gm.api import Toolkit
from gm.config import cli

RESULTS = "examples/tiny_sdxl/ablation.jsonl"
PHRASES = {"<humbug>": "pink striped heart", "<confetti>": "red outline yellow spots"}
OTHERS = {"<humbug>": "blue", "<confetti>": "circle"}


@dataclass(frozen=True)
class Change:
    """Options set apart from `BASE`; one of a concept may depend on the thing to learn."""

    what: str
    level: str
    concept: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    loss: dict[str, Any] = field(default_factory=dict)

    def concept_of(self, thing: Unseen) -> dict[str, Any]:
        """Return the options of the concept, a dict of words being looked up by the thing's own."""
        return {name: v[thing.word] if isinstance(v, dict) else v for name, v in self.concept.items()}


BASE = Change(
    "to compare with",
    "one word, 4 vectors, 0.05",
    {"num_vectors": 4},
    {"total_step": 200, "learning_rate": 5e-2, "preserve_embedding_norm": 0.0},
    {"min_snr_gamma": 0.0},
)
CHANGES = (
    BASE,
    Change("initialisation", "random rows", {"initializer_token": None}),
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


def once(toolkit: Toolkit, thing: Unseen, change: Change, seed: int) -> dict[str, Any]:
    """Learn `thing` with `change` and return what the judge says of it."""
    options = {"initializer_token": thing.initializer, "learnable_property": thing.kind}
    concept = api.train(
        toolkit,
        Path("datasets") / thing.folder,
        thing.word,
        training={"seed": seed, **BASE.training, **change.training},
        loss={**BASE.loss, **change.loss},
        **{**options, **BASE.concept, **change.concept_of(thing)},
    )
    after = measure.distances(toolkit, thing, thing.word, [concept])
    return {
        "word": thing.word,
        "what": change.what,
        "level": change.level,
        "seed": seed,
        "distance": round(float(np.median(after)), 4),
        "worst": round(float(after.max()), 4),
        "obeys": measure.obedience(toolkit, thing, concept),
        "norm": round(float(np.median(np.linalg.norm(concept.vectors["clip_l"], axis=1))), 3),
    }


def table(records: Sequence[dict[str, Any]]) -> str:
    """Return Markdown: for each level and thing the median distance over the seeds, its range, and who obeys."""
    lines = ["| | | " + " | ".join(f"`{thing.word}`: distance | obeys" for thing in THINGS) + " |"]
    lines.append("|---|---|" + "---|---|" * len(THINGS))
    for change in CHANGES:
        cells = []
        for thing in THINGS:
            own = [r for r in records if (r["word"], r["what"], r["level"]) == (thing.word, change.what, change.level)]
            if not own:
                cells.append("– | –")
                continue
            found = sorted(r["distance"] for r in own)
            obeys = float(np.mean([r["obeys"] for r in own]))
            cells.append(f"{np.median(found):.2f} ({found[0]:.2f}–{found[-1]:.2f}) | {100 * obeys:.0f} %")
        lines.append(f"| {change.what} | {change.level} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = cli.Parser("What each option of learning does, one at a time, on the tiny model.")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each kind (default: %(default)s)")
    parser.add_argument("--results", default=RESULTS, help="file of JSON lines (default: %(default)s)")
    parser.add_argument("--table", default="False", choices=("True", "False"), help="print the table, learn nothing")
    flags = parser.read()
    path = Path(flags["results"])
    records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    if flags["table"] == "True":
        print(table(records))
        return
    done = {(r["word"], r["what"], r["level"], r["seed"]) for r in records}
    weight = {"weight": "checkpoints/tiny_sd_xl_base.safetensors"}
    toolkit = api.load("configs/training/tiny_textual_inversion.yaml", run=weight)
    for seed in range(42, 42 + flags["seeds"]):
        for change in CHANGES:
            for thing in THINGS:
                if (thing.word, change.what, change.level, seed) in done:
                    continue
                record = once(toolkit, thing, change, seed)
                with path.open("a") as file:
                    file.write(json.dumps(record) + "\n")
                print(json.dumps(record), flush=True)


if __name__ == "__main__":
    cli.run(main)
