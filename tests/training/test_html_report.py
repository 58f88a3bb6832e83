"""HTML report: its contents, and that it is self-contained."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

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
    assert sum(tag == "svg" for tag, _ in read.tags) == 3 + 2 * 2  # norms and angles in each text encoder
    assert "training.total_step4" in read.text
    assert "vector 1, norm" in read.text


def test_chart_places_its_ends_in_its_corners() -> None:
    drawn = html_report.chart("Loss", {"a": [(1, 0.5), (3, 1.5)], "b": [(2, 1.0)]})
    lines = re.findall(r'points="([^"]*)"', drawn)
    assert lines == ["72.0,180.0 600.0,40.0", "336.0,110.0"]
    assert ">0.5<" in drawn
    assert ">1.5<" in drawn
    assert ">step 3<" in drawn


def vector_record(step: int, encoder: str, norms: list[float], angles: list[float], token: str) -> dict[str, Any]:
    return {
        "step": step,
        "placeholder_token": "<toy>",
        "encoder": encoder,
        "norms": [0.5 * norm for norm in norms],
        "relative_norms": norms,
        "relative_norms_before": [1.0] * len(norms),
        "angles": angles,
        "nearest_tokens": [[[token, 0.91], ["other", 0.5]] for _ in norms],
    }


def write_log(folder: Path, *records: dict[str, Any]) -> str:
    """Write a report of the records; return its page."""
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return html_report.write(folder, "title", {}).read_text(encoding="utf-8")


def test_norms_angles_and_nearest_tokens_are_shown_over_the_run(tmp_path: Path) -> None:
    early = vector_record(25, "clip_l", [1.5, 2.0], [10.0, 20.0], "<early>")
    page = write_log(tmp_path, early, vector_record(100, "clip_l", [2.0, 3.0], [40.0, 30.0], "late"))
    read = _Page(page)
    assert read.open == []
    norms, angles = (svg for svg in page.split("<svg")[1:])
    # From the initial vectors at step 0 on: relative norms from 1 to 3, angles from 0 to 40 degrees.
    assert re.findall(r'points="([^"]*)"', norms) == [
        "72.0,180.0 204.0,145.0 600.0,110.0",
        "72.0,180.0 204.0,110.0 600.0,40.0",
    ]
    assert re.findall(r'points="([^"]*)"', angles) == [
        "72.0,180.0 204.0,145.0 600.0,40.0",
        "72.0,180.0 204.0,110.0 600.0,75.0",
    ]
    assert "vector 0, norm 1late 0.91, other 0.50" in read.text
    assert "step 25<early> 0.91, <early> 0.91step 100late 0.91, late 0.91" in read.text
    assert "Warning" not in read.text  # 3 is not above 3


def test_norms_above_three_times_those_of_the_tokens_are_a_warning(tmp_path: Path) -> None:
    records = [vector_record(9, encoder, norms, [1.0, 2.0], "a") for encoder, norms in (("clip_l", [2.9, 3.4]),)]
    read = _Page(write_log(tmp_path, *records, vector_record(9, "clip_g", [1.0, 1.0], [1.0, 1.0], "a")))
    assert read.text.count("Warning") == 1
    assert "Warning: the norm of vector 1 (3.4) is more than 3 times that of the model's tokens" in read.text


def test_records_of_an_earlier_version_are_shown_without_charts(tmp_path: Path) -> None:
    record = vector_record(9, "clip_l", [1.0], [1.0], "a")
    for name in ("relative_norms", "relative_norms_before", "angles"):
        del record[name]
    page = write_log(tmp_path, record)
    assert "<svg" not in page
    assert "vector 0, norm 0.5" in _Page(page).text


def test_a_chart_of_many_curves_shows_them_all() -> None:
    drawn = html_report.chart("Norm", {str(k): [(0, 1.0), (1, 1.0 + k)] for k in range(40)})
    assert drawn.count("<polyline") == 40
    names = [float(x) for x in re.findall(r'<text x="([\d.]+)" y="28"', drawn)]
    assert len(names) == 40
    assert names == sorted(names)
    assert max(names) < 640


@pytest.mark.parametrize("points", [[(1, 2.0)], [(1, 2.0), (2, 2.0)]])
def test_flat_curve_is_in_the_middle(points: list[tuple[float, float]]) -> None:
    assert ",110.0" in html_report.chart("Loss", {"a": points})
