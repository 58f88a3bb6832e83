"""The evaluation as a Markdown page and as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import gm
from gm.evaluation.generation import SubjectImages
from gm.evaluation.job import EvaluationJob
from gm.evaluation.prompts import GROUPS
from gm.evaluation.results import Cell, Difference, SubjectResult
from gm.evaluation.scores import HELD_OUT, TRAINING, Encoders, Metric
from gm.evaluation.statistics import Estimate


@dataclass(frozen=True, eq=False)
class Evaluation:
    """All that was measured; `real` are the scores of the real images themselves."""

    job: EvaluationJob
    planned: list[SubjectImages]
    encoders: Encoders
    metrics: list[Metric]
    real: dict[Metric, float]
    results: list[SubjectResult]
    differences: list[Difference]


def markdown(evaluation: Evaluation) -> str:
    """Return the tables, with a line on their contents."""
    lines = ["# Evaluation", "", *_description(evaluation)]
    for group in GROUPS:
        rows = {result.name: _cells(result.estimates, group, evaluation.metrics) for result in evaluation.results}
        real = [f"{evaluation.real[metric]:.3f}" if metric in evaluation.real else "–" for metric in evaluation.metrics]
        lines += ["", f"## {group.capitalize()}", "", *_table(evaluation.metrics, {**rows, "real images": real})]
    for group in GROUPS if evaluation.differences else ():
        rows = {
            f"{each.name} − {each.base}": _cells(each.estimates, group, evaluation.metrics, signed=True)
            for each in evaluation.differences
        }
        lines += ["", f"## {group.capitalize()}: paired differences", "", *_table(evaluation.metrics, rows)]
        lines += ["", "\\* the interval does not hold 0."]
    return "\n".join(lines) + "\n"


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """Return everything as JSON values: options, prompts, and the scores of each image."""
    job = evaluation.job
    encoders = {"clip": evaluation.encoders.clip, "dino": evaluation.encoders.dino}
    return {
        "version": gm.__version__,
        "model": job.config.model.version,
        "weight": job.config.run.weight,
        "prompt_set": job.prompt_set,
        "class_word": job.class_word,
        "evaluation": dataclasses.asdict(job.config.evaluation),
        "sampling": dataclasses.asdict(job.config.sampling),
        "encoders": {
            name: {"title": encoder.title, "source": encoder.source} for name, encoder in encoders.items() if encoder
        },
        "real_images": job.real_files,
        "real_scores": {metric_name(metric): value for metric, value in evaluation.real.items()},
        "embeddings": [
            _subject_json(result, planned)
            for result, planned in zip(evaluation.results, evaluation.planned, strict=True)
        ],
        "differences": [
            {"name": each.name, "base": each.base, "scores": _estimates_json(each.estimates)}
            for each in evaluation.differences
        ],
    }


def metric_name(metric: Metric) -> str:
    """Return the name of a metric in tables and JSON, such as "DINO, held-out"."""
    name, real = metric
    return f"{name}, {real}" if real else name


def _description(evaluation: Evaluation) -> list[str]:
    job = evaluation.job
    config = job.config
    counts = [f"{sum(p.group == group for p in evaluation.results[0].prompts)} for {group}" for group in GROUPS]
    images = [f"{len(job.real[kind])} {kind}" for kind in (TRAINING, HELD_OUT) if kind in job.real]
    titles = [each.title for each in (evaluation.encoders.clip, evaluation.encoders.dino) if each]
    interval = (
        f"intervals of {100 * config.evaluation.confidence:g} % (Student's t over the seeds)"
        if config.evaluation.num_seeds > 1
        else "no intervals, which need several seeds"
    )
    sampling = config.sampling
    lines = [
        f"{config.model.version}, {config.run.weight}: {sampling.sampler}, {sampling.sample_step} steps, guidance "
        f"scale {sampling.guidance_scale:g}. Prompts: {' and '.join(counts)} (set {job.prompt_set}, class word "
        f"{job.class_word or 'none'}), {config.evaluation.num_seeds} images each. Real images: {' and '.join(images)}. "
        f"Encoders: {' and '.join(titles)}. Means with {interval}."
    ]
    if HELD_OUT not in job.real:
        lines += ["", "Scores against training images reward copies of them; no image was held out."]
    return lines


def _cells(
    estimates: Mapping[Cell, Estimate], group: str, metrics: Sequence[Metric], signed: bool = False
) -> list[str]:
    return [_format(estimates[group, metric], signed) for metric in metrics]


def _format(estimate: Estimate, signed: bool) -> str:
    sign = "+" if signed else ""
    text = f"{estimate.mean:{sign}.3f}"
    if estimate.low is None or estimate.high is None:
        return text
    mark = " \\*" if signed and not estimate.low <= 0 <= estimate.high else ""
    return f"{text} ± {(estimate.high - estimate.low) / 2:.3f}{mark}"


def _table(metrics: Sequence[Metric], rows: Mapping[str, Sequence[str]]) -> list[str]:
    head = ["", *map(metric_name, metrics)]
    table = [head, ["---"] * len(head), *([name.replace("|", "\\|"), *cells] for name, cells in rows.items())]
    return [f"| {' | '.join(row)} |".replace("|  |", "| |") for row in table]


def _subject_json(result: SubjectResult, planned: SubjectImages) -> dict[str, Any]:
    subject = planned.subject
    folder = Path(planned.config.sampling.save_path)
    seeds = planned.config.evaluation.num_seeds
    images = [
        {
            "file": image.path.relative_to(folder).as_posix(),
            "group": prompt.group,
            "prompt": prompt.prompt,
            "text": prompt.text,
            "seed": image.request.seed,
        }
        for image, prompt in zip(planned.images, [p for p in result.prompts for _ in range(seeds)], strict=True)
    ]
    for metric in dict.fromkeys(metric for _, metric in result.values):
        of_images = np.concatenate([result.values[group, metric].ravel() for group in GROUPS])
        for image, value in zip(images, of_images, strict=True):
            image[metric_name(metric)] = float(value)
    return {
        "name": result.name,
        "file": subject.file,
        "placeholder_token": subject.embedding.placeholder_token,
        "num_vectors": subject.embedding.num_vectors,
        "scores": _estimates_json(result.estimates),
        "images": images,
    }


def _estimates_json(estimates: Mapping[Cell, Estimate]) -> dict[str, Any]:
    scores: dict[str, Any] = {group: {} for group in GROUPS}
    for (group, metric), each in estimates.items():
        scores[group][metric_name(metric)] = dataclasses.asdict(each)
    return scores
