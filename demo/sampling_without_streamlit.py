"""Draw pictures from prompts, learned words included: see `--help` and docs/sampling.md."""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gm import command_line


def main() -> None:
    config = command_line.parse("Draw pictures with SDXL and words it has learned.", ("run", "sampling"))
    from gm import api  # after the flags: --help need not wait for MindSpore
    from gm.generation import run
    from gm.progress import Line, bar

    job = run.make(config)
    toolkit = api.load(config)
    line, first = Line(), 0.0
    for event in run.run(toolkit.model, toolkit.painter, job):
        if isinstance(event, Path):
            line.say(f"wrote {event}")
        else:
            first = time.monotonic() if event.done == 1 else first
            line.show(bar(event.done, event.total, time.monotonic() - first), last=event.done == event.total)


if __name__ == "__main__":
    command_line.run(main)
