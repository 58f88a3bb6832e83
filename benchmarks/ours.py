"""Workers that run this toolkit: python -m benchmarks.ours step|sampling|load CASE."""

from __future__ import annotations

import dataclasses
import logging
import sys
import time
from typing import Any

from benchmarks import cases
from benchmarks.cases import Case
from benchmarks.workers import Work, serve
from gm.runtime import rng


def step(case: Case) -> tuple[dict[str, Any], Work]:
    """Return a worker that trains: per piece `accumulation` steps, each with its batch, and one update."""
    from gm import api
    from gm.training import setup, trainer

    config = case.config()
    prepared = setup.prepare(config)
    toolkit = api.load(config)
    run = trainer.prepare(toolkit.model, prepared, toolkit.backend)
    toolkit.model.release_vae()  # as training does without previews
    reports = run.steps()
    facts = {"product_flops_per_second": product_speed()}

    def work() -> dict[str, Any]:
        started = time.perf_counter()
        losses = [next(reports).loss for _ in range(case.accumulation)]
        return {"seconds": (time.perf_counter() - started) / case.accumulation, "loss": losses[-1]}

    return facts, work


def product_speed() -> dict[str, float]:
    """Return the FLOPs a second of MindSpore's matrix product in float32, and of this toolkit's in bfloat16."""
    import mindspore as ms
    from mindspore import Tensor, ops

    from gm.ops import bfloat16

    x = Tensor(rng.normal((cases.PRODUCT_SIDE,) * 2, 0, "product"))
    multiply = ops.MatMul()
    speeds = {"float32": cases.product_speed(lambda: multiply(x, x))}
    if bfloat16.available():
        project, weight = bfloat16.project_without_bias(), Tensor(x, ms.bfloat16)
        speeds["bfloat16"] = cases.product_speed(lambda: project(x, weight))
    return speeds


def sampling(case: Case) -> tuple[dict[str, Any], Work]:
    """Return a worker that generates `batch` images per piece."""
    from gm import api
    from gm.embeddings.embedding import combine
    from gm.sampling import request

    config = case.config()
    toolkit = api.load(config)
    known = combine([], config.model)
    options = dataclasses.replace(config.sampling, seed=0)
    requests = request.image_requests([cases.PROMPT] * case.batch, options, config.model, known)

    def work() -> dict[str, Any]:
        ticks = [time.perf_counter() for _ in toolkit.pipeline.generate(requests, known, config.sampling)]
        return {"steps": cases.between(ticks)}

    return {}, work


def load(case: Case) -> tuple[dict[str, Any], Work]:
    """Return a worker that loads the model."""
    from gm import api

    loaded = []  # keeps the model until the peak has been read

    def work() -> dict[str, Any]:
        loaded.append(api.load(case.config()))
        return {}

    return {}, work


def main() -> None:
    logging.basicConfig(level=logging.INFO)
    kind, case = sys.argv[1], cases.from_json(sys.argv[2])
    serve(lambda: {"step": step, "sampling": sampling, "load": load}[kind](case))


if __name__ == "__main__":
    main()
