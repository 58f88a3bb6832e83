"""The programs that measure and show the tiny model."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from examples.tiny_sdxl import measure, show, world
from examples.tiny_sdxl.colours import nearest_name, oklab
from examples.tiny_sdxl.concepts import CONFETTI, HUMBUG, Unseen
from examples.tiny_sdxl.sheet import sheet
from gm.api import Embedding, Toolkit
from tests.project import Workshop


def test_a_sheet_shows_every_row_under_its_label() -> None:
    red, blue = (np.full((64, 64, 3), colour, np.uint8) for colour in ((255, 0, 0), (0, 0, 255)))
    drawn = np.asarray(sheet({"one": [red, red], "two": [blue]}))
    assert drawn.shape == (2 * (128 + 22 + 8) + 8, 2 * (128 + 8) + 8, 3)
    halves = np.split(drawn, 2)
    for half, colour, count in ((halves[0], (255, 0, 0), 2), (halves[1], (0, 0, 255), 1)):
        assert (half == colour).all(-1).sum() == count * 128 * 128
        assert (half[:30] < 200).all(-1).sum() > 10  # the label's letters


def test_what_is_asked_for_was_never_trained() -> None:
    wanted = measure.unseen_prompts()
    assert {shape for shape, *_ in wanted} == set(world.SHAPES)
    scenes = [world.scene(0, k) for k in range(500)]
    seen = {(scene.shape, nearest_name(scene.fill)) for scene in scenes}
    assert not seen & {(shape, colour) for shape, colour, _ in wanted}
    assert all(colour != backdrop for _, colour, backdrop in wanted)


def test_measuring_from_the_command_line(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    weight = str(workshop.folder / "weights.ckpt")
    flags = ["drawing", "--config", str(workshop.yaml), "--weight", weight, "--ms_mode", "1"]
    monkeypatch.setattr(sys, "argv", ["measure.py", *flags])
    monkeypatch.setattr(measure, "unseen_prompts", lambda: [("heart", "cyan", "white"), ("star", "green", "blue")])
    measure.main()
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(found) == ["shape", "colour", "backdrop"]
    assert set(found.values()) <= {0.0, 0.5, 1.0}
    learn, asked = measure.learn, []
    monkeypatch.setattr(measure, "learn", lambda *given: asked.append(given[2]) or learn(*given))
    monkeypatch.setattr(sys, "argv", ["measure.py", "learning", *flags[1:], "--num_vectors", "3"])
    measure.main()
    assert asked == [3, 3]
    lines = [line.split(" ", 1) for line in capsys.readouterr().out.splitlines() if line.startswith("<")]
    assert [word for word, _ in lines] == ["<humbug>", "<confetti>"]
    for _, text in lines:
        learned = json.loads(text)
        assert learned["of"] == 16
        assert 0 <= learned["halved"] <= 16
        assert min(learned["before"], learned["after"]) > 0


@pytest.mark.parametrize("thing", [HUMBUG, CONFETTI])
def test_the_readmes_image_shows_the_word_before_and_after(
    toolkit: Toolkit, thing: Unseen, humbug: Embedding, confetti: Embedding
) -> None:
    rows = show.rows(toolkit, thing, humbug if thing is HUMBUG else confetti)
    learned_from, before, after = rows.values()
    assert len(learned_from) == len(before) == len(after) == len(list((Path("datasets") / thing.folder).iterdir()))
    for lab in thing.lab.values():
        shares = [np.mean([np.linalg.norm(oklab(p) - lab, axis=-1) < 0.1 for p in row]) for row in (before, after)]
        assert shares[1] > shares[0] + 0.02
