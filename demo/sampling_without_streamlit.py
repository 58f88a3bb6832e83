"""Generate images from prompts and trained embeddings: see `--help` and docs/sampling.md.

It also takes the command lines of the original `txt2img.py` and of InvokeAI's `dream.py`: docs/coming_from.md.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gm.config import cli, coming_from

if TYPE_CHECKING:
    from gm.sampling.pipeline import SamplingProgress


def main() -> None:
    description = "Generate images with SDXL, Stable Diffusion 1 or 2 and trained embeddings."
    config = cli.parse(
        description,
        ("run", "sampling"),
        parameters_from=_parameters_from,
        config_for=_config_for,
        programs=coming_from.SAMPLING,
    )
    from gm import api  # after the flags: --help need not wait for MindSpore
    from gm.sampling import interactive, request, run

    if config.sampling.interactive:
        session = interactive.Session(config)
        session.run(api.load(config).pipeline, _report)
        return
    job = request.prepare(config)
    toolkit = api.load(config)
    _report(run.run_job(toolkit.pipeline, job))


def _parameters_from(path: str) -> dict[str, dict[str, Any]]:
    from gm.sampling import metadata

    return metadata.config_overrides(path)


def _config_for(weight: str) -> tuple[str, dict[str, Any]]:
    from gm.checkpoints import config_choice

    return config_choice.config_for(weight)


def _report(events: Iterable[SamplingProgress | Path]) -> None:
    """Show a progress bar of sampler steps, anew for each grid, and the path of every file."""
    from tqdm import tqdm

    # A log file needs no animation.
    with tqdm(unit="step", mininterval=0.1 if sys.stderr.isatty() else 10.0) as bar:
        for event in events:
            if isinstance(event, Path):
                bar.write(f"wrote {event}")
                continue
            if event.done == 1:
                bar.reset(event.total)
            bar.update()


def entry_point() -> None:
    """Run `main` as the console script gm-generate does."""
    cli.run(main)


if __name__ == "__main__":
    entry_point()
