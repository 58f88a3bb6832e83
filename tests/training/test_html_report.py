"""HTML report: its contents, and that it is self-contained."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from gm import api
from gm.training import html_report, setup, trainer
from tests.project import Workshop


class _Page(HTMLParser):
    """The tags of a page, those that are open, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_report_is_self_contained(workshop: Workshop, tmp_path: Path) -> None:
    prompts = ["a {} & <b>no tag</b> --w 32", "two {} --d 9"]
    options = {"total_step": 4, "infer_during_train": True, "infer_interval": 2, "validation_prompts": prompts}
    options |= {"num_validation_samples": 2, "validation_loss_interval": 2, "save_path": str(tmp_path)}
    toolkit = api.load(workshop.config(training=options))
    trainer.run(toolkit.model, setup.prepare(toolkit.config), toolkit.backend)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    read = _Page(page)
    assert read.open == []
    assert not re.search(r"(src|href)=.(?!data:)", page)  # nothing is fetched
    shown = [attributes["src"] for tag, attributes in read.tags if tag == "img"]
    for step, source in zip((0, 2, 4), shown, strict=True):
        content = (tmp_path / "previews" / f"step_{step}.png").read_bytes()
        assert source == "data:image/png;base64," + base64.b64encode(content).decode()
    assert "before training" in read.text
    assert "<toy> on smallest" in read.text
    assert "<b>no tag</b>" in read.text  # as text, in the options
    assert ("b", {}) not in read.tags
    assert sum(tag == "svg" for tag, _ in read.tags) == 3
    assert "training.total_step4" in read.text
    assert "vector 1, norm" in read.text


def test_chart_places_its_ends_in_its_corners() -> None:
    drawn = html_report.chart("Loss", {"a": [(1, 0.5), (3, 1.5)], "b": [(2, 1.0)]})
    lines = re.findall(r'points="([^"]*)"', drawn)
    assert lines == ["72.0,180.0 600.0,40.0", "336.0,110.0"]
    assert ">0.5<" in drawn
    assert ">1.5<" in drawn
    assert ">step 3<" in drawn


@pytest.mark.parametrize("points", [[(1, 2.0)], [(1, 2.0), (2, 2.0)]])
def test_flat_curve_is_in_the_middle(points: list[tuple[float, float]]) -> None:
    assert ",110.0" in html_report.chart("Loss", {"a": points})
