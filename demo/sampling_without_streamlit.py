"""Draw images from prompts, learned words included: see `--help` and docs/sampling.md."""

import time
from pathlib import Path
from typing import Any

from gm.config import cli


def main() -> None:
    about = "Draw images with SDXL and words it has learned."
    config = cli.parse(about, ("run", "sampling"), parameters_from=_recipe)
    from gm import api  # after the flags: --help need not wait for MindSpore
    from gm.runtime.progress import Line, bar
    from gm.sampling import request, run

    made = request.prepare(config)
    toolkit = api.load(config)
    line, first = Line(), 0.0
    for event in run.run(toolkit.model, toolkit.pipeline, made):
        if isinstance(event, Path):
            line.say(f"wrote {event}")
        else:
            first = time.monotonic() if event.done == 1 else first
            line.show(bar(event.done, event.total, time.monotonic() - first), last=event.done == event.total)


def _recipe(path: str) -> dict[str, dict[str, Any]]:
    from gm.sampling import metadata

    return metadata.overrides(path)


def entry_point() -> None:
    """Run `main` as the console script gm-generate does."""
    cli.run(main)


if __name__ == "__main__":
    entry_point()
