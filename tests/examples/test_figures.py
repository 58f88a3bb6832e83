"""The scripts that measure the tiny model and plot figures."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from examples.tiny_sdxl import evaluator, measure, readme_figure, world
from examples.tiny_sdxl.colors import nearest_name
from examples.tiny_sdxl.concepts import CONFETTI, HUMBUG, UnseenConcept
from examples.tiny_sdxl.image_grid import image_grid
from gm.api import Embedding, Toolkit
from tests.project import Workshop


def test_image_grid_has_every_row_under_its_label() -> None:
    red, blue = (np.full((64, 64, 3), color, np.uint8) for color in ((255, 0, 0), (0, 0, 255)))
    drawn = np.asarray(image_grid({"one": [red, red], "two": [blue]}))
    assert drawn.shape == (2 * (128 + 22 + 8) + 8, 2 * (128 + 8) + 8, 3)
    halves = np.split(drawn, 2)
    for half, color, count in ((halves[0], (255, 0, 0), 2), (halves[1], (0, 0, 255), 1)):
        assert (half == color).all(-1).sum() == count * 128 * 128
        assert (half[:30] < 200).all(-1).sum() > 10  # the label's letters


def test_prompts_of_held_out_combinations_were_never_trained() -> None:
    wanted = measure.unseen_prompts()
    assert {shape for shape, *_ in wanted} == set(world.SHAPES)
    scenes = [world.scene(0, k) for k in range(500)]
    seen = {(scene.shape, nearest_name(scene.fill)) for scene in scenes}
    assert not seen & {(shape, color) for shape, color, _ in wanted}
    assert all(color != backdrop for _, color, backdrop in wanted)


def test_measure_script(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    weight = str(workshop.folder / "weights.ckpt")
    flags = ["prompts", "--config", str(workshop.yaml), "--weight", weight, "--ms_mode", "1"]
    monkeypatch.setattr(sys, "argv", ["measure.py", *flags])
    monkeypatch.setattr(measure, "unseen_prompts", lambda: [("heart", "cyan", "white"), ("star", "green", "blue")])
    measure.main()
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(found) == ["shape", "color", "backdrop"]
    assert set(found.values()) <= {0.0, 0.5, 1.0}
    train_concept, num_vectors = measure.train_concept, []
    monkeypatch.setattr(measure, "train_concept", lambda *args: num_vectors.append(args[2]) or train_concept(*args))
    monkeypatch.setattr(sys, "argv", ["measure.py", "concepts", *flags[1:], "--num_vectors", "3"])
    measure.main()
    assert num_vectors == [3, 3]
    lines = [line.split(" ", 1) for line in capsys.readouterr().out.splitlines() if line.startswith("<")]
    assert [word for word, _ in lines] == ["<humbug>", "<confetti>"]
    for _, text in lines:
        learned = json.loads(text)
        assert learned["of"] == 16
        assert 0 <= learned["halved"] <= 16
        assert min(learned["before"], learned["after"]) > 0


@pytest.mark.parametrize("thing", [HUMBUG, CONFETTI])
def test_readme_figure_shows_the_concept_only_after_training(
    fast_toolkit: Toolkit, thing: UnseenConcept, humbug: Embedding, confetti: Embedding
) -> None:
    rows = readme_figure.figure_rows(fast_toolkit, thing, humbug if thing is HUMBUG else confetti)
    learned_from, before, after = rows.values()
    assert len(learned_from) == len(before) == len(after) == len(list((Path("datasets") / thing.folder).iterdir()))
    distances = [[evaluator.distance(image, thing.colors, thing.shape) for image in row] for row in (before, after)]
    assert np.median(distances[1]) < np.median(distances[0]) / 2
