"""Fixtures of all tests: the device, and small models that are built once per session."""

from __future__ import annotations

import dataclasses
import fcntl
import gc
import logging
import os
import runpy
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.markers import add_markers
from tests.reference.configs import ALL, CONFIGS, STABLE_DIFFUSION

if TYPE_CHECKING:
    from examples.tiny_sdxl.concepts import UnseenConcept
    from gm.api import Embedding, Toolkit
    from gm.models.stable_diffusion import StableDiffusion
    from tests.project import Call, Once, Workshop
    from tests.reference.case import Case

# The workers share the cores out: threads of two processes that wait for each other on both cores take twice as long.
if (worker := os.environ.get("PYTEST_XDIST_WORKER")) and hasattr(os, "sched_setaffinity"):
    number, count = int(worker.removeprefix("gw")), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[number::count] or [cores[number % len(cores)]])

# A graph that several tests need is compiled once per session: by whichever process of it comes first.
if not worker:
    _graphs = tempfile.TemporaryDirectory(prefix="test-graphs-")
    os.environ["GM_GRAPHS"] = _graphs.name


@pytest.hookimpl(tryfirst=True)  # before -m deselects tests
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Tests that train the tiny model come first, and in equal shares in the runs of the list that the workers begin
    # with: a worker that has one left at the end keeps the others waiting.
    count = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    long = [item for item in items if "examples" in item.path.parts]
    rest = [item for item in items if "examples" not in item.path.parts]
    ordered: list[pytest.Item] = []
    for number in range(count):
        ordered += long[number::count]
        length = max(0, (number + 1) * len(items) // count - len(ordered))
        ordered, rest = ordered + rest[:length], rest[length:]
    items[:] = ordered
    for item in items:
        if isinstance(item, pytest.Function):
            add_markers(item)


def pytest_collection_finish() -> None:
    # What all test modules have imported stays until the end. The garbage collector, which MindSpore calls for every
    # graph, need not look through it.
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def device() -> str:
    """Set the CPU as device before any tensor is created; return the library of its operators."""
    from gm.config import RunConfig
    from gm.runtime import backend, onednn

    backend.setup(RunConfig(device_target="CPU", ms_mode=1))
    return onednn.library()


@pytest.fixture(autouse=True)
def operators(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore the session's operators after a test, which may have compiled them into a folder of its own."""
    from gm.runtime import onednn

    monkeypatch.setattr(onednn, "_path", onednn.library())


@pytest.fixture(scope="session")
def cases(device: None, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    """Return the function from a name in `ALL` or `STABLE_DIFFUSION` to its model, built once a session."""
    from tests.reference.case import Case

    made: dict[str, Case] = {}

    def get(name: str) -> Case:
        if name not in made:
            made[name] = Case(name, tmp_path_factory.mktemp(name))
        return made[name]

    return get


@pytest.fixture(scope="session", params=CONFIGS)
def case(request: pytest.FixtureRequest, cases: Callable[[str], Case]) -> Case:
    """Return every small base model in turn."""
    return cases(request.param)


@pytest.fixture(scope="session", params=ALL)
def any_case(request: pytest.FixtureRequest, cases: Callable[[str], Case]) -> Case:
    """Return every small model in turn, including the refiner."""
    return cases(request.param)


@pytest.fixture(scope="session", params=STABLE_DIFFUSION)
def sd_case(request: pytest.FixtureRequest, cases: Callable[[str], Case]) -> Case:
    """Return every small model of Stable Diffusion 1 and 2 in turn."""
    return cases(request.param)


@pytest.fixture(scope="session")
def refiner(cases: Callable[[str], Case]) -> Case:
    """Return the small refiner."""
    return cases("refiner")


@pytest.fixture(scope="session")
def like_base(cases: Callable[[str], Case]) -> Case:
    """Return the small model with SDXL's architecture and vocabulary."""
    return cases("like-base")


@pytest.fixture(scope="session")
def smallest(cases: Callable[[str], Case]) -> Case:
    """Return the small model that compiles and runs fastest; it has the published vocabulary."""
    return cases("reversed")


@pytest.fixture(scope="session")
def workshop(device: None, tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """Return the files of the smallest model with its weights loaded; tests must not change them."""
    from gm.checkpoints import loading
    from tests.project import Workshop

    made = Workshop(tmp_path_factory.mktemp("workshop"))
    loading.load_weights(made.model, made.folder / "weights.ckpt", made.config().model)
    return made


@pytest.fixture(scope="session")
def toolkit(device: None) -> Toolkit:
    """Return the shipped tiny model in graph mode; tests must not change it."""
    from gm import api

    config = "configs/training/tiny_textual_inversion.yaml"
    return api.load(config, run={"weight": "checkpoints/tiny_sd_xl_base.safetensors", "device_target": "CPU"})


@pytest.fixture(scope="session")
def fast_toolkit(toolkit: Toolkit) -> Toolkit:
    """Return the toolkit with a third of the sampling steps, which are enough to tell what an image shows."""
    sampling = dataclasses.replace(toolkit.config.sampling, sample_step=10)
    return dataclasses.replace(toolkit, config=dataclasses.replace(toolkit.config, sampling=sampling))


@pytest.fixture(scope="session")
def tiny(toolkit: Toolkit) -> StableDiffusion:
    """Return the shipped tiny model alone."""
    return toolkit.model


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """Return the function (name, make) → the file of that name, which the first worker to ask has made."""
    base = tmp_path_factory.getbasetemp()
    folder = base.parent if worker else base  # of the session, not of this worker

    def get(name: str, make: Callable[[Path], None]) -> Path:
        path = folder / name
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                make(path)
        return path

    return get


@pytest.fixture(scope="session")
def humbug(toolkit: Toolkit, once: Once) -> Embedding:
    """Return the embedding of the object, trained as in `make demo`."""
    from examples.tiny_sdxl.concepts import HUMBUG

    return _trained(toolkit, HUMBUG, once)


@pytest.fixture(scope="session")
def confetti(toolkit: Toolkit, once: Once) -> Embedding:
    """Return the embedding of the style, trained as in `make demo-style`."""
    from examples.tiny_sdxl.concepts import CONFETTI

    return _trained(toolkit, CONFETTI, once)


def _trained(toolkit: Toolkit, concept: UnseenConcept, once: Once) -> Embedding:
    from examples.tiny_sdxl import measure
    from gm.embeddings import io

    def train(path: Path) -> None:
        io.save(measure.train_concept(toolkit, concept, toolkit.config.concept.num_vectors), path)

    return io.load(once(f"{concept.folder}.safetensors", train))


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Return a function that runs a script with arguments → (exit code, standard output, standard error)."""

    def called(script: Path, *arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [str(script), *map(str, arguments)])
        monkeypatch.setattr(logging.getLogger("gm"), "handlers", [])  # a script's handler writes to this capture
        code = 0
        try:
            runpy.run_path(str(script), run_name="__main__")
        except SystemExit as end:
            code = int(end.code or 0)
        out, error = capsys.readouterr()
        return code, out, error

    return called


@pytest.fixture
def no_grad() -> Iterator[None]:
    """Run the reference without recording gradients."""
    import torch

    with torch.no_grad():
        yield
