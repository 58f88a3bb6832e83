"""The experiment on the tiny model: its judge of obedience, its grid, its tables."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from examples.tiny_sdxl import experiment, experiment_report, obedience, rendering, world
from examples.tiny_sdxl.colors import CENTERS, COLORS
from examples.tiny_sdxl.concepts import CONFETTI, HUMBUG
from examples.tiny_sdxl.experiment import METHODS, UPDATES, Run
from gm.api import Embedding, Toolkit
from tests.reference.inputs import normal

ROOT = Path(__file__).resolve().parents[2]
COUNT = 64  # points of the grid
CENTRE = dict(zip(COLORS, (tuple(map(float, lab)) for lab in CENTERS), strict=True))
DIRECTIONS = {"top": -1, "bottom": 1, "left": -1, "right": 1}


def as_asked(asked: dict[str, str]) -> world.Scene:
    """Return a scene that shows what a prompt asks for, and a plain heart for the rest."""
    values: dict[str, Any] = {"shape": "heart", "fill": CENTRE["pink"], "backdrop": CENTRE["grey"], "radius": 0.27}
    values |= {"x": 0.5, "y": 0.5}
    for name, value in asked.items():
        if name == "size":
            values["radius"] = 0.2 if value == "small" else 0.34
        elif name == "place":
            down, across = value.split()
            values |= {"x": 0.5 + 0.15 * DIRECTIONS[across], "y": 0.5 + 0.15 * DIRECTIONS[down]}
        elif name in ("thing", "style"):
            values |= world.named(value)
        elif name == "concept":
            concept = {"<humbug>": HUMBUG, "<confetti>": CONFETTI}[value]
            values |= concept.lab | ({"shape": concept.shape} if concept.shape else {})
        else:
            values[name] = value if name == "shape" else CENTRE[value]
    return world.Scene(**values)


@pytest.mark.parametrize("token", obedience.PROMPTS)
def test_an_image_of_what_was_asked_for_has_it_all_and_another_has_little(token: str) -> None:
    other = obedience.OTHER[token]
    plain = world.Scene("circle", 0.27, 0.5, 0.5, CENTRE["brown"], CENTRE["pink"])
    for text, asked in obedience.PROMPTS[token]:
        image = rendering.render(as_asked(asked), 64).round().astype(np.uint8)
        assert all(obedience.matches(image, asked, other)), text
        image = rendering.render(plain, 64).round().astype(np.uint8)
        assert np.mean(obedience.matches(image, asked, other)) < 0.5, text


def test_prompts_ask_for_what_they_say() -> None:
    for prompts in obedience.PROMPTS.values():
        for text, asked in prompts:
            assert text.count("{}") == 1
            for value in asked.values():
                assert value in text


def test_every_run_has_one_that_differs_in_one_choice() -> None:
    grid = list(experiment.runs(2))
    assert len(grid) == len(set(grid)) == 2 * COUNT
    parts = [set(grid[0::2]), set(grid[1::2])]
    assert parts[0] | parts[1] == set(grid)
    for run in grid:
        assert dataclasses.replace(run, class_word=not run.class_word) in grid


def record(run: Run, distances: tuple[float, ...], share: float) -> dict[str, Any]:
    updates = {str(n): {"distance": d, "obedience": share} for n, d in zip(UPDATES, distances, strict=True)}
    return {**dataclasses.asdict(run), "seconds": 0.1, "updates": updates}


def test_the_tables_compare_pairs(tmp_path: Path) -> None:
    """A class word costs 0.1 of distance and gains a quarter of obedience, whatever the method."""
    path = tmp_path / "results.jsonl"
    lines = []
    for k, run in enumerate(experiment.runs(1)):
        near = 0.2 + 0.01 * (k % 3) + 0.1 * run.class_word
        lines.append(record(run, (0.6, 0.5, 0.4, near), 0.5 + 0.25 * run.class_word))
    lines.append({"method": "initializer token", "placeholder_token": "<humbug>", "updates": {"0": {"distance": 0.7}}})
    path.write_text("\n".join(map(json.dumps, lines)))
    records = experiment_report.records_by_run(path)
    assert len(records) == COUNT
    rows = [
        [cell.strip() for cell in row.split("|")] for row in experiment_report.effect_table(records, 200).splitlines()
    ]
    effects = {row[1]: row[2:5] for row in rows}
    assert effects["class word"] == [
        "+0.000 (+0.000 to +0.000)",
        "+25.0 % (+25.0 to +25.0)",
        "16",
    ]  # without context loss
    assert effects["context loss of weight 0.01"][1:] == ["+0.0 % (+0.0 to +0.0)", "32"]
    assert effects["context loss of weight 0.01 with direction"][1:] == ["+0.0 % (+0.0 to +0.0)", "8"]
    assert effects["direction instead of AdamW"][2] == "8"
    plain = experiment_report.without_context_loss(records)
    assert "context loss" not in experiment_report.effect_table(plain, 200)  # of an experiment that was interrupted
    assert experiment_report.untrained(path)["<humbug>"] == {"distance": 0.7}
    assert f"| {next(iter(METHODS))} | 0.60 / 62 % |" in experiment_report.method_table(records, 4)
    figure = tmp_path / "figure.png"
    experiment_report.plot(records, figure)
    assert figure.stat().st_size > 10_000


@pytest.mark.parametrize(
    ("distances", "updates"),
    [((0.2, 0.2, 0.2, 0.2), 50), ((0.7, 0.4, 0.2, 0.2), 175), ((0.7, 0.5, 0.4, 0.31), np.inf)],
)
def test_the_updates_to_come_near_are_read_between_measurements(distances: tuple[float, ...], updates: float) -> None:
    run = next(experiment.runs(1))
    assert experiment_report.first_near(record(run, distances, 1.0)) == pytest.approx(updates)


def test_a_mean_has_an_interval() -> None:
    mean = experiment_report.mean_of([0.0, 1.0] * 50)
    assert mean.value == 0.5
    assert mean.low == pytest.approx(0.4, abs=0.03)
    assert mean.high == pytest.approx(0.6, abs=0.03)


def test_docs_show_the_tables_of_the_results() -> None:
    docs = (ROOT / "docs" / "hyperparameters.md").read_text(encoding="utf-8")
    for title, table in experiment_report.tables(ROOT / experiment.RESULTS).items():
        assert table in docs, title


@pytest.mark.e2e
def test_a_run_is_measured_at_each_number_of_updates(toolkit: Toolkit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "UPDATES", (1, 2))
    monkeypatch.setattr(experiment, "SAMPLING", {"sample_step": 2})
    monkeypatch.setattr(obedience, "SEEDS", 1)
    others = {
        token: Embedding(token, {"clip_l": normal(k, 1, 24), "clip_g": normal(k, 1, 32)})
        for k, token in enumerate(("<humbug>", "<confetti>"))
    }
    run = Run("direction", context_loss=0.01, class_word=True, num_vectors=1, placeholder_token="<humbug>", seed=3)
    pynative = dataclasses.replace(toolkit, backend=dataclasses.replace(toolkit.backend, graph=False))
    found = experiment.measure_run(pynative, run, others)
    assert experiment.run_of(found) == run
    assert set(found["updates"]) == {1, 2}
    assert found["updates"][1] != found["updates"][2]
