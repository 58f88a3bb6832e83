"""A page about a run, `report.html`: options, curves, previews and words in one file that opens without a server."""

from __future__ import annotations

import base64
import contextlib
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gm.runtime import atomic_io
from gm.training import output_dir

_WIDTH, _HEIGHT, _MARGIN, _LEFT = 640, 220, 40, 72
_FEW = 30  # points of a curve that are marked one by one
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse } td, th { padding: .15rem .8rem .15rem 0; text-align: left; vertical-align: top }
svg { width: 100%; max-width: 40rem } text { font-size: 12px; fill: #555 } .axis { stroke: #bbb }
img { max-width: 100%; image-rendering: auto } figure { margin: 1rem 0 } figcaption, small { color: #666 }
"""
_COLOURS = ("#3366cc", "#cc6633", "#339966")

Curve = list[tuple[float, float]]


def write(place: Path, title: str, options: dict[str, Any]) -> Path:
    """Write the page of the run in the folder `place` from what it has logged and drawn; return its path."""
    records = []
    for line in (place / output_dir.LOG).read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):  # cut off by a full disk
            records.append(json.loads(line))
    parts = [f"<h1>{html.escape(title)}</h1>", *_numbers(records), *_curves(records), *_previews(place)]
    parts += [*_words(records), *_options(options)]
    page = f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
    page += f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style>\n'
    page += "\n".join([*parts, "</html>", ""])
    path = place / output_dir.REPORT
    with atomic_io.atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def curve(records: Sequence[dict[str, Any]], name: str) -> Curve:
    """Return (step, value) of every record that holds a number of this `name`."""
    return [(record["step"], record[name]) for record in records if record.get(name) is not None]


def chart(title: str, curves: dict[str, Curve]) -> str:
    """Draw curves over steps as SVG, each in a colour with its name."""
    points = [point for each in curves.values() for point in each]
    left, right = min(x for x, _ in points), max(x for x, _ in points)
    low, high = min(y for _, y in points), max(y for _, y in points)
    across, up = _WIDTH - _LEFT - _MARGIN, _HEIGHT - 2 * _MARGIN

    def at(x: float, y: float) -> str:
        place = (x - left) / (right - left) if right > left else 0.5
        height = (y - low) / (high - low) if high > low else 0.5
        return f"{_LEFT + across * place:.1f},{_HEIGHT - _MARGIN - up * height:.1f}"

    bottom = _HEIGHT - _MARGIN
    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img"><title>{html.escape(title)}</title>']
    parts.append(f'<path class="axis" fill="none" d="M{_LEFT},{_MARGIN} V{bottom} H{_WIDTH - _MARGIN}"/>')
    parts += [
        f'<text x="{_LEFT - 4}" y="{_MARGIN + 4}" text-anchor="end">{high:.3g}</text>',
        f'<text x="{_LEFT - 4}" y="{bottom}" text-anchor="end">{low:.3g}</text>',
        f'<text x="{_LEFT}" y="{bottom + 16}">{left:g}</text>',
        f'<text x="{_WIDTH - _MARGIN}" y="{bottom + 16}" text-anchor="end">step {right:g}</text>',
    ]
    for (name, points_), colour, number in zip(curves.items(), _COLOURS, range(len(curves)), strict=False):
        line = " ".join(at(x, y) for x, y in points_)
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="{line}"/>')
        if len(points_) < _FEW:
            places = (at(x, y).split(",") for x, y in points_)
            parts += [f'<circle r="2" fill="{colour}" cx="{x}" cy="{y}"/>' for x, y in places]
        place = f'x="{_LEFT + 140 * number}" y="{_MARGIN - 12}"'
        parts.append(f'<text {place} style="fill:{colour}">{html.escape(name)}</text>')
    return "".join([*parts, "</svg>"])


def _numbers(records: Sequence[dict[str, Any]]) -> list[str]:
    steps = [record for record in records if "loss" in record]
    rows = []
    if steps:
        last = steps[-1]
        rows += [("steps", last["step"]), ("updates", last["update"]), ("steps left out", last["skipped"])]
        rows.append(("loss, smoothed", f"{last['loss_smoothed']:.4f}" if last["loss_smoothed"] is not None else "none"))
    measured = [record for record in records if "held_out" in record]
    if measured:
        last = measured[-1]
        rows.append(("validation loss", f"{last['held_out_before']:.4f} → {last['held_out']:.4f}"))
        if last["held_out_change_low"] is not None:
            ends = f"{last['held_out_change_low']:+.4f} to {last['held_out_change_high']:+.4f}"
            rows.append(("change, 95 % interval", f"{last['held_out_change']:+.4f}, {ends}"))
        rows.append(("best after step", last["held_out_best_step"]))
    return [_table(rows)]


def _curves(records: Sequence[dict[str, Any]]) -> list[str]:
    found = []
    for title, names in (
        ("Loss", {"smoothed": "loss_smoothed", "held-out": "held_out"}),
        ("Learning rate", {"learning rate": "learning_rate"}),
        ("Norm of the gradient", {"before clipping": "gradient_norm"}),
    ):
        curves = {shown: points for shown, name in names.items() if (points := curve(records, name))}
        if curves:
            found.append(f"<h2>{title}</h2>{chart(title, curves)}")
    return found


def _previews(place: Path) -> list[str]:
    paths = sorted((place / output_dir.PREVIEWS).glob("step_*.png"), key=lambda path: int(path.stem.split("_")[1]))
    return ["<h2>Previews</h2>"] * bool(paths) + [
        f'<figure><img alt="preview" src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}">'
        f"<figcaption>{'before' if path.stem == 'step_0' else path.stem.replace('_', ' ')}</figcaption></figure>"
        for path in paths
    ]


def _words(records: Sequence[dict[str, Any]]) -> list[str]:
    latest = {(record["word"], record["encoder"]): record for record in records if "nearest" in record}
    parts = ["<h2>What each row is like</h2>"] * bool(latest)
    for (word, encoder), record in latest.items():
        rows = [
            (f"row {k}, norm {norm:.3g}", ", ".join(f"{like} {cosine:.2f}" for like, cosine in words))
            for k, (norm, words) in enumerate(zip(record["norms"], record["nearest"], strict=True))
        ]
        parts.append(f"<h3>{html.escape(word)} in {encoder}</h3>{_table(rows)}")
    return parts


def _options(options: dict[str, Any]) -> list[str]:
    rows = [(f"{section}.{name}", value) for section, values in options.items() for name, value in values.items()]
    return ["<h2>Options</h2>", _table(rows)]


def _table(rows: Sequence[tuple[Any, Any]]) -> str:
    cells = (f"<tr><th>{html.escape(str(name))}</th><td>{html.escape(str(value))}</td></tr>" for name, value in rows)
    return f"<table>{''.join(cells)}</table>"
