"""The workers on models of every family: a training step and an image of the toolkit and of diffusers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks import cases as benchmark_cases
from benchmarks import ours, reference
from benchmarks.cases import SIZES, Size
from gm import config as configuration
from gm.config import Config
from gm.text.tokenizer import VOCAB_SIZE
from tests.reference.case import Case

VECTORS = 2


@pytest.fixture(params=["like-sd1", "like-sd2"])
def model(request: pytest.FixtureRequest, cases: Callable[[str], Case]) -> Case:
    """Return a small model of each family with the published vocabulary; `test_commands.py` runs SDXL's."""
    return cases(request.param)


@pytest.fixture
def case(model: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> benchmark_cases.Case:
    """Return a case of the benchmarks with the small model."""
    configuration.save(Config(model=model.config), tmp_path / "config.yaml")
    size = Size(
        name="small model",
        yaml=str(tmp_path / "config.yaml"),
        pixels=model.config.resolution,
        images="datasets/humbug",
        together=True,
        warm_ups=0,
        rounds=1,
        pieces=1,
        image_rounds=1,
        published=str(model.path),
    )
    monkeypatch.setitem(SIZES, size.name, size)
    monkeypatch.setattr(Size, "weight", property(lambda self: self.source))  # not converted
    monkeypatch.setattr(reference, "product_speed", dict)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    return benchmark_cases.Case(size.name, size.pixels, vectors=VECTORS, mode="pynative", steps=3)


@pytest.mark.parametrize("how", ["float32", "bfloat16"])
def test_losses_of_both_sides_are_alike(how: str, case: benchmark_cases.Case) -> None:
    """Same model, images and prompts, other noise: about 1 plus the variance of an untrained UNet's output."""
    losses = {}
    for name, side in (("ours", ours), ("reference", reference)):
        _, work = side.step(dataclasses.replace(case, reference=how))
        losses[name] = work()["loss"]
    assert 0.5 < losses["reference"] < 4
    assert losses["ours"] == pytest.approx(losses["reference"], rel=0.5)


@pytest.mark.parametrize("how", benchmark_cases.REFERENCES)
def test_networks_of_the_reference_are_as_its_name_says(how: str, case: benchmark_cases.Case) -> None:
    _, networks = reference._start(dataclasses.replace(case, reference=how))
    frozen = torch.bfloat16 if how.startswith("bfloat16") else torch.float32
    assert (networks.unet.dtype, networks.vae.dtype) == (frozen, frozen)
    assert networks.text_encoder_1.dtype == torch.float32
    assert (networks.unet._compiled_call_impl is not None) == how.endswith("compiled")


@pytest.mark.parametrize("model", ["reversed", "like-sd1", "like-sd2"], indirect=True)
def test_reference_conditions_as_its_family_and_trains_the_added_vectors_alone(
    case: benchmark_cases.Case, model: Case, no_grad: None
) -> None:
    _, networks = reference._start(case)
    trainer = reference._Trainer(case, networks)
    ids = [each[:2] for each in trainer.ids]
    before = [table.clone() for table in trainer.tables]
    vectors = [table[VOCAB_SIZE:] for table in before]
    context, pooled = trainer._condition([0, 1])
    expected, expected_pooled = model.reference.condition(ids[0], ids[-1], None, vectors[0], vectors[-1])
    torch.testing.assert_close(context, expected, rtol=1e-5, atol=1e-6)
    assert (pooled is None) == (expected_pooled is None) == (model.config.family != "sdxl")
    with torch.enable_grad():
        trainer.update()
    for table, original in zip(trainer.tables, before, strict=True):
        changed = (table != original).any(dim=1)
        assert changed.nonzero().flatten().tolist() == list(range(VOCAB_SIZE, VOCAB_SIZE + VECTORS))


def test_both_sides_time_the_steps_of_an_image(case: benchmark_cases.Case) -> None:
    for side, how in ((ours, "float32"), (reference, "float32"), (reference, "bfloat16")):
        _, work = side.sampling(dataclasses.replace(case, reference=how))
        assert [seconds > 0 for seconds in work()["steps"]] == [True] * (case.steps - 2)


def test_stable_diffusion_is_sampled_with_euler_as_the_reference_is() -> None:
    config = benchmark_cases.Case("sd1.5", 512).config()
    assert (config.model.family, config.model.resolution) == ("sd1", 512)
    assert (config.sampling.sampler, config.sampling.schedule) == ("euler", "legacy")
