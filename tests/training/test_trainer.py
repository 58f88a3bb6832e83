"""Whole runs on the smallest model: files, log, repeatability, both modes, and a falling validation loss."""

from __future__ import annotations

import gc
import json
import math
import weakref
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from PIL import Image

from gm import api
from gm import config as configuration
from gm.checkpoints import loading
from gm.config import Config
from gm.embeddings import io as embedding_io
from gm.embeddings.nearest_tokens import nearest_tokens
from gm.errors import UserError
from gm.models import stable_diffusion
from gm.models.stable_diffusion import StableDiffusion
from gm.runtime.backend import Backend
from gm.sampling.image_files import read_parameters
from gm.training import divergence, output_dir, setup, trainer
from gm.training.step_result import StepResult
from gm.training.trainer import Trainer
from gm.training.validation import ValidationLoss
from tests.project import Workshop, whole_run

EAGER = Backend("CPU", graph=False, dtype=ms.float32)
GRAPH = Backend("CPU", graph=True, dtype=ms.float32)


def train(
    workshop: Workshop, config: Config, backend: Backend = EAGER, model: StableDiffusion | None = None
) -> tuple[list[float], np.ndarray]:
    run = trainer.prepare(model or workshop.model, setup.prepare(config), backend)
    return [result.loss for result in run.steps()], flat(run)


def flat(run: Trainer) -> np.ndarray:
    """Return the vectors of all encoders in one array."""
    return np.concatenate([each.ravel() for each in run.state.vector_arrays().values()])


@pytest.mark.graph
def test_graph_and_pynative_train_the_same_and_runs_are_repeatable(workshop: Workshop) -> None:
    config = workshop.config(training={"total_step": 10, "gradient_accumulation_steps": 2}, data={"random_flip": True})
    eager, graph = train(workshop, config), train(workshop, config, GRAPH)
    for first, backend in ((eager, EAGER), (graph, GRAPH)):
        again = train(workshop, config, backend)
        assert first[0] == again[0]
        assert np.array_equal(first[1], again[1])
    np.testing.assert_allclose(graph[0], eager[0], rtol=1e-4)
    np.testing.assert_allclose(graph[1], eager[1], rtol=1e-3, atol=1e-4)
    other = train(workshop, workshop.config(training={"total_step": 10, "seed": 43}))
    assert not np.allclose(other[0], eager[0], rtol=1e-2)


@pytest.mark.parametrize("graph", [False, pytest.param(True, marks=pytest.mark.graph)], ids=["pynative", "graph"])
def test_float16_trains_about_the_same(workshop: Workshop, graph: bool) -> None:
    config = workshop.config(training={"total_step": 2})
    model = stable_diffusion.build(config.model, ms.float16)
    loading.load_weights(model, config.run.weight, config.model)
    run = trainer.prepare(model, setup.prepare(config), Backend("CPU", graph, ms.float16))
    start = flat(run)
    results = list(run.steps())
    losses, vectors = train(workshop, config)
    assert all(result.finite for result in results)
    np.testing.assert_allclose([result.loss for result in results], losses, rtol=2e-3)
    assert np.linalg.norm(flat(run) - vectors) < 0.05 * np.linalg.norm(vectors - start)
    assert {p.dtype for p in model.unet.get_parameters() if p.name.endswith("weight")} == {ms.float16}
    assert {p.dtype for p in run.state.get_parameters()} == {ms.float32}


def test_numpy_computes_from_bfloat16_weights_as_from_the_same_values_in_float32(workshop: Workshop) -> None:
    """The CPU cannot train in bfloat16; what NumPy computes before, during and after training does not depend on it."""
    training_setup = setup.prepare(workshop.config(concept={"num_vectors": 3}))
    models = [stable_diffusion.build(workshop.model.config, dtype) for dtype in (ms.bfloat16, ms.float32)]
    for model in models:
        loading.load_weights(model, training_setup.config.run.weight, model.config)
    for rounded, same in zip(*(model.get_parameters() for model in models), strict=True):
        same.set_data(Tensor(rounded.asnumpy().astype(np.float32)))
    runs = [trainer.prepare(model, training_setup, EAGER) for model in models]
    assert models[0].token_tables()["clip_g"].dtype.name == "bfloat16"
    assert np.array_equal(flat(runs[0]), flat(runs[1]))
    assert runs[0].base_model == runs[1].base_model
    assert models[0].token_norms([5, 6, 7]) == models[1].token_norms([5, 6, 7])
    vectors = runs[0].state.vector_arrays()["clip_l"]
    tokens = [nearest_tokens(vectors, model.token_tables()["clip_l"], 3) for model in models]
    assert tokens[0] == tokens[1]
    result = StepResult(1, 1, math.nan, math.nan, False, 1, 0.0, None, 0.0)
    causes = [divergence.cause(model, runs[0].state, result, EAGER) for model in models]
    assert causes[0] == causes[1]
    assert "weights are finite" in causes[0]
    weight = next(p for p in models[0].unet.get_parameters() if p.dtype == ms.bfloat16)
    weight.set_data(Tensor(np.full(weight.shape, np.nan, np.float32), ms.bfloat16))
    assert weight.name in divergence.cause(models[0], runs[0].state, result, EAGER)


@pytest.mark.parametrize("graph", [False, pytest.param(True, marks=pytest.mark.graph)], ids=["pynative", "graph"])
def test_weights_kept_in_float16_train_the_same(workshop: Workshop, tmp_path: Path, graph: bool) -> None:
    """Weights that are widened at every use are the numbers that loading would convert them to."""
    config, backend = workshop.config(training={"total_step": 4}), Backend("CPU", graph, ms.float32)
    loading.convert(config.run.weight, tmp_path / "half.ckpt", config.model, "float16")
    found = []
    for keep_half_above in (math.inf, 300):
        model = stable_diffusion.build(config.model)
        loading.load_weights(model, tmp_path / "half.ckpt", config.model, keep_half_above)
        narrow = [p for p in model.get_parameters() if p.dtype == ms.float16]
        assert len(narrow) == 0 if keep_half_above == math.inf else len(narrow) > 100
        found.append(train(workshop, config, backend, model))
    (losses, rows), (same_losses, same_rows) = found
    np.testing.assert_allclose(same_losses, losses, rtol=1e-6)
    np.testing.assert_allclose(same_rows, rows, rtol=1e-5, atol=1e-6)


@pytest.mark.graph
def test_validation_loss_falls(workshop: Workshop) -> None:
    config = workshop.config(training={"total_step": 120, "gradient_accumulation_steps": 2, "learning_rate": 2e-2})
    run = trainer.prepare(workshop.model, setup.prepare(config), GRAPH)
    start = run.state.vector_arrays()
    validation = ValidationLoss(workshop.model, run.batches, 24, GRAPH)
    before = validation.losses(start)
    for _ in run.steps():
        pass
    trained = run.state.vector_arrays()
    after = validation.losses(trained)
    print(f"validation loss {before.mean():.4f} before, {after.mean():.4f} after")
    assert after.mean() < 0.97 * before.mean()
    assert (after < before).sum() >= 20
    # Vectors moved as far in a random direction do not do that.
    random = np.random.default_rng(0)
    moved = {}
    for name, a in start.items():
        direction = random.standard_normal(a.shape).astype(np.float32)
        moved[name] = a + direction * np.linalg.norm(trained[name] - a) / np.linalg.norm(direction)
    assert validation.losses(moved).mean() > after.mean() + 0.5 * (before.mean() - after.mean())


def test_run_writes_its_files(workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"total_step": 7, "gradient_accumulation_steps": 2, "save_ckpt_interval": 3}
    options |= {"num_validation_samples": 2, "validation_loss_interval": 4}
    preview = {"infer_during_train": True, "infer_interval": 5}
    config = workshop.config(
        training={**options, **preview, "save_path": str(tmp_path / "r"), "log_interval": 2}, sampling={"num_cols": 2}
    )
    last = whole_run(config)
    place = tmp_path / "r"
    assert last == place / "smallest_7_ti.ckpt"
    assert sorted(p.name for p in place.glob("*_ti.ckpt")) == [f"smallest_{n}_ti.ckpt" for n in (3, 6, 7, "best")]
    assert configuration.load(place / "config.yaml") == config
    records = [json.loads(line) for line in (place / "log.jsonl").read_text().splitlines()]
    validation = [r for r in records if "validation_loss" in r]
    records = [r for r in records if "loss" in r]
    assert [r["step"] for r in records] == [2, 4, 6, 7]
    assert [r["update"] for r in records] == [1, 2, 3, 4]  # the step left over adds one
    assert records[0]["gradient_norm"] > 0
    assert {"loss", "loss_smoothed", "learning_rate", "seconds", "skipped"} <= set(records[0])
    assert [p.name for p in place.glob("state_*")] == ["state_7.ckpt"]
    assert [r["step"] for r in validation] == [4, 7]
    for record in validation:
        moved = record["validation_loss"] - record["validation_loss_before"]
        assert record["validation_loss_change"] == pytest.approx(moved)
        assert record["validation_loss_change_low"] < moved < record["validation_loss_change_high"]
    previews = sorted(p.name for p in (place / "previews").iterdir())
    assert previews == ["before_after.png", "step_0.png", "step_5.png", "step_7.png"]
    assert Image.open(place / "previews" / "step_5.png").size == (32, 16)
    assert read_parameters(place / "previews" / "step_5.png")["prompts"] == ["a photo of <toy>"]
    before, after, both = (np.asarray(Image.open(place / "previews" / previews[k])) for k in (1, 3, 0))
    assert np.array_equal(both, np.concatenate([before, after], axis=1))
    assert not np.array_equal(before, after)
    concept = embedding_io.load(last)
    assert (concept.placeholder_token, concept.num_vectors, concept.metadata["step"]) == ("<toy>", 2, 7)
    assert [p.stem for p in sorted(place.glob("*.safetensors"))] == [p.stem for p in sorted(place.glob("*_ti.ckpt"))]
    twin = embedding_io.load(last.with_suffix(".safetensors"))
    assert np.array_equal(twin.vectors["clip_g"], concept.vectors["clip_g"])
    assert twin.metadata == concept.metadata
    assert concept.metadata["base_model"] == stable_diffusion.fingerprint(workshop.model)
    assert concept.metadata["recipe"]["training"]["total_step"] == 7
    out = capsys.readouterr().out
    assert "step 7/7  update 4/4  loss " in out
    assert "s/step" in out
    assert "validation loss" in out


def test_files_of_an_earlier_run_are_moved_and_kept(workshop: Workshop, tmp_path: Path) -> None:
    config = workshop.config(training={"total_step": 1, "save_path": str(tmp_path / "r")})
    first = whole_run(config).read_bytes()
    (tmp_path / "r" / "notes.txt").write_text("mine")
    whole_run(workshop.config(training={"total_step": 1, "seed": 1, "save_path": str(tmp_path / "r")}))
    whole_run(config)
    assert (tmp_path / "r" / "earlier_1" / "smallest_1_ti.ckpt").read_bytes() == first
    assert (tmp_path / "r" / "earlier_1" / "smallest_1_ti.safetensors").exists()
    assert (tmp_path / "r" / "earlier_2" / "config.yaml").exists()
    assert (tmp_path / "r" / "notes.txt").read_text() == "mine"


def test_vae_is_released_unless_sample_images_need_it(workshop: Workshop, tmp_path: Path) -> None:
    for previews in (False, True):
        options = {"total_step": 1, "infer_during_train": previews, "save_path": str(tmp_path / str(previews))}
        toolkit = api.load(workshop.config(training=options))
        kept = weakref.ref(toolkit.model.first_stage_model)
        trainer.run(toolkit.model, setup.prepare(toolkit.config), toolkit.backend)
        gc.collect()
        assert (kept() is not None) is previews


def test_save_path_that_is_not_writable_is_named(workshop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    config = workshop.config(training={"save_path": str(tmp_path / "file" / "r")})
    with pytest.raises(
        UserError, match=r"cannot write to --save_path .*file/r: .*file is not a folder; choose another"
    ):
        setup.prepare(config)
    training_setup = setup.prepare(workshop.config(training={"save_path": str(tmp_path / "later")}))
    (tmp_path / "later").write_text("")  # it is there by the time the weights are loaded
    with pytest.raises(UserError, match=r"cannot write to --save_path .*later: File exists; choose another folder"):
        output_dir.acquire(training_setup).__enter__()


def test_refiner_cannot_be_trained(workshop: Workshop) -> None:
    with pytest.raises(UserError, match="is a refiner, which cannot be trained"):
        setup.prepare(configuration.load(workshop.folder / "refiner.yaml"))
