"""HTML report of a run, `report.html`: options, curves, sample images and vectors in one self-contained file."""

from __future__ import annotations

import base64
import contextlib
import html
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gm.runtime import atomic_io
from gm.training import output_dir

_WIDTH, _HEIGHT, _MARGIN, _LEFT = 640, 220, 40, 72
_FEW = 30  # curves with fewer points get markers
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse } td, th { padding: .15rem .8rem .15rem 0; text-align: left; vertical-align: top }
svg { width: 100%; max-width: 40rem } text { font-size: 12px; fill: #555 } .axis { stroke: #bbb }
img { max-width: 100%; image-rendering: auto } figure { margin: 1rem 0 } figcaption, small { color: #666 }
.warning { color: #a00 }
"""
_COLORS = ("#3366cc", "#cc6633", "#339966", "#993399", "#888822", "#227788")
_NAME_WIDTH = 140  # of the name of a curve, at most
MAX_RELATIVE_NORM = 3.0  # of vectors; above it prompts are followed less, and a warning says so

Curve = list[tuple[float, float]]


def write(folder: Path, title: str, options: dict[str, Any]) -> Path:
    """Write the report from the log and the sample images in `folder`; return its path."""
    records = []
    for line in (folder / output_dir.LOG).read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):  # an incomplete line, after a full disk
            records.append(json.loads(line))
    parts = [f"<h1>{html.escape(title)}</h1>", *_summary(records), *_curves(records), *_sample_images(folder)]
    parts += [*_vectors(records), *_options(options)]
    page = f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
    page += f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style>\n'
    page += "\n".join([*parts, "</html>", ""])
    path = folder / output_dir.REPORT
    with atomic_io.atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def curve(records: Sequence[dict[str, Any]], name: str) -> Curve:
    """Return (step, value) of every record that has a value of this `name`."""
    return [(record["step"], record[name]) for record in records if record.get(name) is not None]


def chart(title: str, curves: dict[str, Curve]) -> str:
    """Return a chart of curves over steps as SVG, each in a color with its name."""
    points = [point for each in curves.values() for point in each]
    left = min(x for x, _ in points)
    right = max(x for x, _ in points)
    low = min(y for _, y in points)
    high = max(y for _, y in points)
    width = _WIDTH - _LEFT - _MARGIN
    height = _HEIGHT - 2 * _MARGIN

    def position(x: float, y: float) -> str:
        u = (x - left) / (right - left) if right > left else 0.5
        v = (y - low) / (high - low) if high > low else 0.5
        return f"{_LEFT + width * u:.1f},{_HEIGHT - _MARGIN - height * v:.1f}"

    bottom = _HEIGHT - _MARGIN
    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img"><title>{html.escape(title)}</title>']
    parts.append(f'<path class="axis" fill="none" d="M{_LEFT},{_MARGIN} V{bottom} H{_WIDTH - _MARGIN}"/>')
    parts += [
        f'<text x="{_LEFT - 4}" y="{_MARGIN + 4}" text-anchor="end">{high:.3g}</text>',
        f'<text x="{_LEFT - 4}" y="{bottom}" text-anchor="end">{low:.3g}</text>',
        f'<text x="{_LEFT}" y="{bottom + 16}">{left:g}</text>',
        f'<text x="{_WIDTH - _MARGIN}" y="{bottom + 16}" text-anchor="end">step {right:g}</text>',
    ]
    name_width = min(_NAME_WIDTH, width / len(curves))
    for number, ((name, curve_points), color) in enumerate(zip(curves.items(), itertools.cycle(_COLORS), strict=False)):
        line = " ".join(position(x, y) for x, y in curve_points)
        parts.append(f'<polyline fill="none" stroke="{color}" stroke-width="1.5" points="{line}"/>')
        if len(curve_points) < _FEW:
            centers = (position(x, y).split(",") for x, y in curve_points)
            parts += [f'<circle r="2" fill="{color}" cx="{x}" cy="{y}"/>' for x, y in centers]
        at = f'x="{_LEFT + name_width * number:g}" y="{_MARGIN - 12}"'
        parts.append(f'<text {at} style="fill:{color}">{html.escape(name)}</text>')
    return "".join([*parts, "</svg>"])


def _summary(records: Sequence[dict[str, Any]]) -> list[str]:
    rows: list[tuple[str, Any]] = []
    steps = [record for record in records if "loss" in record]
    if steps:
        last = steps[-1]
        loss = last["loss_smoothed"]
        rows += [("steps", last["step"]), ("updates", last["update"]), ("skipped steps", last["skipped"])]
        rows.append(("smoothed loss", "none" if loss is None else f"{loss:.4f}"))
    validation = [record for record in records if "validation_loss" in record]
    if validation:
        last = validation[-1]
        rows.append(("validation loss", f"{last['validation_loss_before']:.4f} → {last['validation_loss']:.4f}"))
        if last["validation_loss_change_low"] is not None:
            interval = f"{last['validation_loss_change_low']:+.4f} to {last['validation_loss_change_high']:+.4f}"
            rows.append(("change, 95 % interval", f"{last['validation_loss_change']:+.4f}, {interval}"))
        rows.append(("best after step", last["validation_loss_best_step"]))
    return [_table(rows)]


def _curves(records: Sequence[dict[str, Any]]) -> list[str]:
    charts = []
    for title, names in (
        ("Loss", {"smoothed": "loss_smoothed", "validation": "validation_loss"}),
        ("Learning rate", {"learning rate": "learning_rate"}),
        ("Gradient norm", {"before clipping": "gradient_norm"}),
        ("Context loss", {"without its weight": "context_loss"}),
    ):
        curves = {label: points for label, name in names.items() if (points := curve(records, name))}
        if curves:
            charts.append(f"<h2>{title}</h2>{chart(title, curves)}")
    return charts


def _sample_images(folder: Path) -> list[str]:
    paths = sorted((folder / output_dir.PREVIEWS).glob("step_*.png"), key=lambda path: int(path.stem.split("_")[1]))
    if not paths:
        return []
    parts = ["<h2>Sample images</h2>"]
    for path in paths:
        data = base64.b64encode(path.read_bytes()).decode()
        caption = "before training" if path.stem == "step_0" else path.stem.replace("_", " ")
        image = f'<img alt="sample images" src="data:image/png;base64,{data}">'
        parts.append(f"<figure>{image}<figcaption>{caption}</figcaption></figure>")
    return parts


def _vectors(records: Sequence[dict[str, Any]]) -> list[str]:
    """Return norms, angles and nearest tokens of each concept's vectors in each text encoder."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for record in records:
        if "norms" in record:
            groups.setdefault((record["placeholder_token"], record["encoder"]), []).append(record)
    parts = ["<h2>Vectors</h2>"] if groups else []
    for (placeholder_token, encoder), group in groups.items():
        parts.append(f"<h3>{html.escape(placeholder_token)} in {encoder}</h3>")
        measured = [record for record in group if "angles" in record]  # all but those of an earlier version
        if measured:
            parts += [*_norm_warning(measured[-1]), *_vector_charts(measured)]
        parts += _nearest_tokens(group)
    return parts


def _norm_warning(record: dict[str, Any]) -> list[str]:
    above = [f"{k} ({norm:.2g})" for k, norm in enumerate(record["relative_norms"]) if norm > MAX_RELATIVE_NORM]
    if not above:
        return []
    return [
        f'<p class="warning">Warning: the norm of vector {", ".join(above)} is more than {MAX_RELATIVE_NORM:g} times '
        "that of the model's tokens; prompts with such vectors are followed less.</p>"
    ]


def _vector_charts(records: Sequence[dict[str, Any]]) -> list[str]:
    """Return the charts of the relative norm of each vector, and of its angle to the initial vector."""
    start = records[0]["relative_norms_before"]
    charts = []
    for title, name, before in (
        ("Norm relative to that of the model's tokens, by vector", "relative_norms", start),
        ("Angle to the initial vector in degrees, by vector", "angles", [0.0] * len(start)),
    ):
        curves = {
            str(k): [(0.0, value), *((record["step"], record[name][k]) for record in records)]
            for k, value in enumerate(before)
        }
        charts.append(f"<p>{title}</p>{chart(title, curves)}")
    return charts


def _nearest_tokens(records: Sequence[dict[str, Any]]) -> list[str]:
    """Return the nearest tokens of each vector after the last step, and the nearest one over the run."""
    last = records[-1]
    rows = [
        (f"vector {k}, norm {norm:.3g}", ", ".join(f"{token} {cosine:.2f}" for token, cosine in tokens))
        for k, (norm, tokens) in enumerate(zip(last["norms"], last["nearest_tokens"], strict=True))
    ]
    parts = [f"<p>Nearest tokens</p>{_table(rows)}"]
    if len(records) > 1:
        over_time = [
            (f"step {record['step']}", ", ".join("{} {:.2f}".format(*tokens[0]) for tokens in record["nearest_tokens"]))
            for record in records
        ]
        parts.append(f"<details><summary>Nearest token of each vector, by step</summary>{_table(over_time)}</details>")
    return parts


def _options(options: dict[str, Any]) -> list[str]:
    rows: list[tuple[str, Any]] = []
    for section, values in options.items():
        if isinstance(values, dict):
            rows += [(f"{section}.{name}", value) for name, value in values.items()]
        elif values:  # the list of concepts
            rows.append((section, values))
    return ["<h2>Options</h2>", _table(rows)]


def _table(rows: Sequence[tuple[Any, Any]]) -> str:
    cells = (f"<tr><th>{html.escape(str(name))}</th><td>{html.escape(str(value))}</td></tr>" for name, value in rows)
    return f"<table>{''.join(cells)}</table>"
