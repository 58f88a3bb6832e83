"""Results of an evaluation: the estimate of each metric by group of prompts, and paired differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from gm.evaluation.prompts import GROUPS, EvaluationPrompt
from gm.evaluation.scores import Metric, Scorer
from gm.evaluation.statistics import Estimate, estimate

Cell = tuple[str, Metric]  # group of prompts and metric


@dataclass(frozen=True, eq=False)
class SubjectResult:
    """Scores of an embedding: of each image [prompts of the group, seeds], and their estimates."""

    name: str
    prompts: list[EvaluationPrompt]
    values: dict[Cell, np.ndarray]
    estimates: dict[Cell, Estimate]


@dataclass(frozen=True)
class Difference:
    """Mean difference of the scores of `name` minus those of `base`, image by image on the same noise."""

    name: str
    base: str
    estimates: dict[Cell, Estimate]


def score_subject(
    name: str, prompts: list[EvaluationPrompt], images: Sequence[Image.Image], scorer: Scorer, confidence: float
) -> SubjectResult:
    """Return the scores of the `images`, equally many of each prompt and in the order of `prompts`."""
    seeds = len(images) // len(prompts)
    scores = scorer.score(images, [prompt.text for prompt in prompts for _ in range(seeds)])
    values = {}
    for group in GROUPS:
        rows = [number for number, prompt in enumerate(prompts) if prompt.group == group]
        for metric, of_images in scores.items():
            values[group, metric] = of_images.reshape(len(prompts), seeds)[rows]
    estimates = {cell: estimate(of_cell, confidence) for cell, of_cell in values.items()}
    return SubjectResult(name, prompts, values, estimates)


def differences(results: Sequence[SubjectResult], confidence: float) -> list[Difference]:
    """Return the paired differences of every embedding from the first."""
    base = results[0]
    return [
        Difference(
            result.name,
            base.name,
            {cell: estimate(result.values[cell] - base.values[cell], confidence) for cell in result.values},
        )
        for result in results[1:]
    ]
