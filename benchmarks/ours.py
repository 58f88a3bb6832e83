"""Workers that run this toolkit: python -m benchmarks.ours step|sampling|load CASE."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

from benchmarks import cases
from benchmarks.cases import Case
from benchmarks.worker import Work, serve


def step(case: Case) -> tuple[dict[str, Any], Work]:
    """Return a worker that trains: `accumulation` steps a piece, each with its batch, and the update after them."""
    from gm import api
    from gm.training import loop, plan
    from gm.training import run as runs

    config = case.config()
    made = plan.make(config)
    toolkit = api.load(config)
    learned, feed = runs.prepare(toolkit.model, made, toolkit.backend)
    toolkit.model.release_autoencoder()  # as training does where no previews are drawn
    reports = loop.run(toolkit.model, learned, feed, config.training, made.updates, toolkit.backend)

    def work() -> dict[str, Any]:
        started = time.perf_counter()
        losses = [next(reports).loss for _ in range(case.accumulation)]
        return {"seconds": (time.perf_counter() - started) / case.accumulation, "loss": losses[-1]}

    return {}, work


def sampling(case: Case) -> tuple[dict[str, Any], Work]:
    """Return a worker that draws `batch` pictures a piece."""
    from gm import api
    from gm.concepts.concept import words
    from gm.generation.text_to_image import Order

    config = case.config()
    toolkit = api.load(config)
    known = words([], config.model)
    orders = [Order(cases.PROMPT, seed) for seed in range(case.batch)]

    def work() -> dict[str, Any]:
        ticks = [time.perf_counter() for _ in toolkit.painter.draw(orders, known, config.sampling)]
        return {"steps": cases.between(ticks)}

    return {}, work


def load(case: Case) -> tuple[dict[str, Any], Work]:
    """Return a worker whose piece of work is to load the model."""
    from gm import api

    held = []  # until the peak has been read

    def work() -> dict[str, Any]:
        held.append(api.load(case.config()))
        return {}

    return {}, work


def main() -> None:
    logging.basicConfig(level=logging.INFO)
    kind, case = sys.argv[1], cases.read(sys.argv[2])
    serve(lambda: {"step": step, "sampling": sampling, "load": load}[kind](case))


if __name__ == "__main__":
    main()
