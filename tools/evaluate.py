"""Evaluate embeddings by CLIP-I, CLIP-T and DINO: see `--help` and docs/evaluation.md.

python tools/evaluate.py --weight sd_xl_base_1.0_ms.ckpt --training_images datasets/cat_toy --class_word toy \\
    --compare runs/adam/SD-XL-base-1.0_3000_ti.ckpt runs/prodigy/SD-XL-base-1.0_3000_ti.ckpt --save_path outputs/cat_toy
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gm.config import cli
from gm.config.evaluation import UNUSED_SAMPLING_OPTIONS

if TYPE_CHECKING:
    from gm.sampling.pipeline import Pipeline, SamplingProgress


def main() -> None:
    description = "Evaluate embeddings: CLIP-I, CLIP-T and DINO scores by the protocol of DreamBench."
    config = cli.parse(
        description, ("run", "sampling", "evaluation"), config_for=_config_for, without=UNUSED_SAMPLING_OPTIONS
    )
    from gm import api  # after the flags: --help need not wait for MindSpore
    from gm.evaluation import generation, job, run
    from gm.runtime import backend

    prepared = job.prepare(config)
    planned = generation.plan(prepared)  # all prompts and files are checked before the networks are loaded
    device = backend.setup(config.run)
    encoders = run.load_encoders(prepared)

    def load_pipeline() -> Pipeline:
        return api.load(config).pipeline

    paths = _report(run.run_job(prepared, planned, encoders, device, load_pipeline))
    tables = next(path for path in reversed(paths) if path.suffix == ".md")
    print(tables.read_text(encoding="utf-8"))


def _config_for(weight: str) -> tuple[str, dict[str, Any]]:
    from gm.checkpoints import config_choice

    return config_choice.config_for(weight)


def _report(events: Iterable[SamplingProgress | Path]) -> list[Path]:
    """Show a progress bar of sampler steps, anew for each embedding, and the path of every file; return the paths."""
    from tqdm import tqdm

    paths: list[Path] = []
    # A log file needs no animation.
    with tqdm(unit="step", mininterval=0.1 if sys.stderr.isatty() else 10.0) as bar:
        for event in events:
            if isinstance(event, Path):
                bar.write(f"wrote {event}")
                paths.append(event)
                continue
            if event.done == 1:
                bar.reset(event.total)
            bar.update()
    return paths


def entry_point() -> None:
    """Run `main` as the console script gm-evaluate does."""
    cli.run(main)


if __name__ == "__main__":
    entry_point()
