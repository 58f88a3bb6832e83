"""Workers that profile a training step, or one part of it alone: python -m benchmarks.profiled PART CASE WARM-UPS.

A part is compiled for itself, with a loss of its own at its end: in the graph of the whole step MindSpore gives the
operators of shared Cells and functions, and nearly all gradients, the name of the first place that used them, so the
names in its profile do not tell the parts apart. The time at which the loss is computed tells forward from back.
"""

from __future__ import annotations

import collections
import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mindspore as ms
from mindspore import Tensor, nn, ops

from benchmarks import cases
from benchmarks.cases import Case
from benchmarks.worker import Work, serve
from gm import api
from gm.runtime import backend, rng
from gm.training import setup, trainer
from gm.training.optimizer import create_optimizer
from gm.training.train_step import Batch

_RUNS = 5
_LOSS = "ReduceMean"  # the operator that stands between the way there and the way back

Run = Callable[[], Any]


class _Gradient(nn.Cell):
    """The loss of `part` and its gradient by the first `count` inputs."""

    def __init__(self, part: nn.Cell, count: int) -> None:
        super().__init__(auto_prefix=False)
        self.part, self.positions = part, tuple(range(count))

    def construct(self, *inputs: Tensor) -> Any:
        return ms.value_and_grad(self.part, grad_position=self.positions)(*inputs)


class _Encoder1(nn.Cell):
    def __init__(self, model: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.encoder = model.conditioner.embedders[0].transformer

    def construct(self, rows: Tensor, ids: Tensor) -> Tensor:
        return _mean_square(self.encoder(ids, rows))


class _Encoder2(nn.Cell):
    def __init__(self, model: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.encoder = model.conditioner.embedders[1].model

    def construct(self, rows: Tensor, ids: Tensor, pool_position: Tensor) -> Tensor:
        hidden, pooled = self.encoder(ids, rows, pool_position)
        # Joined, so that there is one operator after which nothing goes forward any more.
        return _mean_square(ops.concat((hidden.reshape((-1,)), pooled.reshape((-1,)))))


class _UNet(nn.Cell):
    def __init__(self, model: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.unet = model.unet

    def construct(self, context: Tensor, vector: Tensor, x: Tensor, timestep: Tensor) -> Tensor:
        return _mean_square(self.unet(x, timestep, context, vector))


class _Encode(nn.Cell):
    def __init__(self, model: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.vae = model.first_stage_model

    def construct(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.vae.encode(images)


def prepared(case: Case, part: str) -> Run:
    """Return the function that runs the whole step, or `part` of it, once."""
    config = case.config()
    made = setup.prepare(config)
    toolkit = api.load(config)
    model, graph = toolkit.model, toolkit.backend.graph
    run = trainer.prepare(model, made, toolkit.backend)
    if part == "autoencoder":
        encode, image = backend.compile_cell(_Encode(model), graph), Tensor(made.images[0].pixels[None])
        return lambda: encode(image)[0].asnumpy()
    model.release_vae()
    if part == "whole":
        reports = run.steps()
        return lambda: next(reports)
    if part == "update":
        update = backend.compile_cell(create_optimizer(run.state, config.training), graph)
        rates = [Tensor(1e-3, ms.float32) for _ in run.state.encoders]
        return lambda: update(*rates).asnumpy()
    cell, inputs, count = _part(
        part, case, model, [Tensor(each) for each in run.state.vector_arrays().values()], run.batches.batch(0)
    )
    network = backend.compile_cell(_Gradient(cell, count), graph)
    return lambda: network(*inputs)[0].asnumpy()


def _part(
    part: str, case: Case, model: nn.Cell, rows: list[Tensor], batch: Batch
) -> tuple[nn.Cell, tuple[Tensor, ...], int]:
    """Return a network, its inputs, and how many of them lead to the rows."""
    if part == "encoder 1":
        return _Encoder1(model), (rows[0], batch.ids[0]), 1
    if part == "encoder 2":
        return _Encoder2(model), (rows[1], batch.ids[1], batch.pool_position), 1
    config = model.config
    context = (case.batch, config.text_encoder_1.positions, config.unet.context_dim)
    drawn = [rng.normal(shape, 0, part) for shape in (context, (case.batch, config.unet.adm_in_channels))]
    return _UNet(model), (*map(Tensor, drawn), batch.x, batch.timesteps), 2


def _mean_square(x: Tensor) -> Tensor:
    return (x * x).mean()


def profile(run: Run) -> dict[str, Any]:
    """Return the `operators` of a run and its seconds."""
    with tempfile.TemporaryDirectory() as folder:
        profiler = ms.profiler.profile(
            activities=[ms.profiler.ProfilerActivity.CPU],
            start_profile=False,
            on_trace_ready=ms.profiler.tensorboard_trace_handler(folder),
        )
        profiler.start()
        started = time.perf_counter()
        for _ in range(_RUNS):
            run()
        seconds = (time.perf_counter() - started) / _RUNS
        profiler.stop()
        (file,) = Path(folder).rglob("cpu_op_execute_timestamp_*.txt")
        return {"operators": operators(file.read_text(encoding="utf-8").splitlines()), "seconds_a_run": seconds}


def operators(lines: list[str]) -> dict[str, Any]:
    """Return what a run spends on every kind of operator, {"MatMul": {"count": …, "forward": …, "back": …}}, in ms.

    Reads the profiler's lines, `name;device;start,milliseconds,process start,…` with the start in nanoseconds.
    """
    ran: list[list[tuple[int, float, str]]] = []
    for line in lines:
        name, _, times = line.split(";")[:3]
        kind = name.rsplit("/", 1)[-1].split("-op")[0]
        # The k-th time of every operator is the k-th run's.
        for number, once in enumerate(times.split()):
            start, took, *_ = once.split(",")
            ran += [[]] if number == len(ran) else []
            ran[number].append((int(start), float(took), kind))
    table: dict[str, Any] = collections.defaultdict(lambda: {"count": 0, "forward": 0.0, "back": 0.0})
    for run in ran:
        losses = [began for began, _, kind in run if kind == _LOSS]
        turn = max(losses) if losses else float("inf")
        for began, milliseconds, kind in run:
            entry = table[kind]
            entry["count"] += 1 / len(ran)
            entry["forward" if began <= turn else "back"] += milliseconds / len(ran)
    return dict(table)


def main() -> None:
    part, case, warm_ups = sys.argv[1], cases.read(sys.argv[2]), int(sys.argv[3])

    def set_up() -> tuple[dict[str, Any], Work]:
        run = prepared(dataclasses.replace(case, mode="graph"), part)
        for _ in range(warm_ups):
            run()
        return {}, lambda: profile(run)

    serve(set_up)


if __name__ == "__main__":
    main()
