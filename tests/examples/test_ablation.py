"""examples/tiny_sdxl/ablation.py: its table of results, which docs/hyperparameters.md shows."""

from __future__ import annotations

import json
from pathlib import Path

from examples.tiny_sdxl import ablation
from examples.tiny_sdxl.ablation import BASE, CHANGES, Change
from examples.tiny_sdxl.concepts import CONFETTI

ROOT = Path(__file__).resolve().parents[2]


def test_every_change_sets_one_option() -> None:
    base = {"initializer_token": CONFETTI.initializer_token, **BASE.concept, **BASE.training, **BASE.loss}
    assert CHANGES[0] == BASE
    for change in CHANGES[1:]:
        options = {**change.concept_of(CONFETTI), **change.training, **change.loss}
        assert len(options) == 1 or change.option == "together"
        assert all(base[name] != value for name, value in options.items())
    phrase = Change("a", "b", {"initializer_token": {"<humbug>": "x", "<confetti>": "y"}})
    assert phrase.concept_of(CONFETTI) == {"initializer_token": "y"}


def test_table_has_medians_and_ranges() -> None:
    option, level = CHANGES[1].option, CHANGES[1].level
    records = [
        {
            "placeholder_token": "<humbug>",
            "option": option,
            "level": level,
            "seed": seed,
            "distance": distance,
            "backdrop_accuracy": accuracy,
        }
        for seed, distance, accuracy in ((1, 0.5, 1.0), (2, 0.2, 0.5), (3, 0.3, 0.0))
    ]
    lines = ablation.table(records).splitlines()
    assert len(lines) == 2 + len(CHANGES)
    assert lines[3] == f"| {option} | {level} | 0.30 (0.20–0.50) | 50 % | – | – |"


def test_docs_show_the_measured_table() -> None:
    records = [json.loads(line) for line in (ROOT / ablation.RESULTS).read_text().splitlines()]
    shown = (ROOT / "docs" / "hyperparameters.md").read_text()
    for line in ablation.table(records).splitlines():
        assert line in shown
