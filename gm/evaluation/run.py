"""A whole evaluation: images, scores, and the files that hold them."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from gm.errors import UserError
from gm.evaluation import contact_sheet, encoders, generation, report, results
from gm.evaluation.generation import SubjectImages
from gm.evaluation.job import EvaluationJob
from gm.evaluation.report import Evaluation
from gm.evaluation.scores import Encoders, Scorer
from gm.runtime import atomic_io
from gm.runtime.backend import Backend
from gm.sampling import image_files
from gm.sampling.pipeline import Pipeline, SamplingProgress

log = logging.getLogger("gm")

STEM = "evaluation"


def load_encoders(job: EvaluationJob) -> Encoders:
    """Load the encoders that the options name; UserError as `encoders.load_clip` and `load_dino` do."""
    options = job.config.evaluation
    return Encoders(
        encoders.load_clip("--clip", options.clip) if options.clip else None,
        encoders.load_dino("--dino", options.dino) if options.dino else None,
    )


def run_job(
    job: EvaluationJob,
    planned: list[SubjectImages],
    image_encoders: Encoders,
    backend: Backend,
    load_pipeline: Callable[[], Pipeline],
) -> Iterator[SamplingProgress | Path]:
    """Generate the missing of the `planned` images, score all, and write JSON, Markdown and contact sheet.

    These get the next free number. Yields progress, and the path of every file once it is written; the last three are
    the results.
    """
    folder = Path(job.config.sampling.save_path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--save_path {folder} is not writable: {error.strerror}; choose another folder") from error
    yield from generation.generate(job, planned, load_pipeline)
    log.info("scoring %d images", sum(len(each.images) for each in planned))
    evaluation = _score(job, planned, image_encoders, backend)
    number = _free_number(folder)
    for suffix, content in (
        ("json", json.dumps(report.as_json(evaluation), ensure_ascii=False, indent=1)),
        ("md", report.markdown(evaluation)),
    ):
        path = folder / f"{STEM}_{number:05d}.{suffix}"
        with atomic_io.atomic_write(path) as temporary:
            temporary.write_text(content, encoding="utf-8")
        yield path
    sheet = folder / f"{STEM}_{number:05d}.png"
    images = {each.subject.name: generation.read(each) for each in planned}
    image_files.write(contact_sheet.render(job.real, job.subjects[0].prompts, images), {}, sheet)
    yield sheet


def _score(job: EvaluationJob, planned: list[SubjectImages], image_encoders: Encoders, backend: Backend) -> Evaluation:
    confidence = job.config.evaluation.confidence
    scorer = Scorer(image_encoders, job.real, backend)
    scored = [
        results.score_subject(each.subject.name, each.subject.prompts, generation.read(each), scorer, confidence)
        for each in planned
    ]
    return Evaluation(
        job,
        planned,
        image_encoders,
        scorer.metrics(),
        scorer.real_scores(),
        scored,
        results.differences(scored, confidence),
    )


def _free_number(folder: Path) -> int:
    """Return the number after the highest of the results in `folder`, which stay as they are."""
    matches = (re.fullmatch(rf"{STEM}_(\d+)\.\w+", path.name) for path in folder.iterdir())
    return max((int(match[1]) for match in matches if match), default=-1) + 1
