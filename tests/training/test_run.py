"""A whole run on the smallest model: files, log, repeatability, both modes, and that it learns."""

from __future__ import annotations

import gc
import io
import json
import logging
import math
import shutil
import weakref
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from PIL import Image

from gm import api, sdxl
from gm import config as configuration
from gm.backend import Backend
from gm.concepts import files
from gm.concepts.concept import Concept
from gm.config import Config
from gm.data import latents, masks
from gm.data.batches import Sample
from gm.errors import UserError
from gm.generation.files import recipe
from gm.sdxl import SDXL
from gm.training import folder, loop, plan, run
from gm.training.console import Console, Smoothed
from gm.training.feed import Feed
from gm.training.validation import HeldOut
from gm.weights import transfer
from tests.workshop import Workshop

EAGER = Backend("CPU", graph=False, dtype=ms.float32)
GRAPH = Backend("CPU", graph=True, dtype=ms.float32)


def train(
    workshop: Workshop, config: Config, backend: Backend = EAGER, model: SDXL | None = None
) -> tuple[list[float], np.ndarray]:
    made, model = plan.make(config), model or workshop.model
    learned, feed = run.prepare(model, made, backend)
    reports = list(loop.run(model, learned, feed, config, made.updates, backend))
    return [r.loss for r in reports], np.concatenate([r.ravel() for r in learned.arrays()])


def whole_run(workshop: Workshop, config: Config) -> Path:
    model = sdxl.build(config.model)  # a run may give the autoencoder away
    transfer.load(model, config.run.weight, config.model)
    return run.run(model, plan.make(config), EAGER)


def test_graph_and_pynative_learn_the_same_and_a_second_run_repeats_the_first(workshop: Workshop) -> None:
    config = workshop.config(training={"total_step": 10, "gradient_accumulation_steps": 2}, data={"flip": True})
    eager, graph = train(workshop, config), train(workshop, config, GRAPH)
    for first, backend in ((eager, EAGER), (graph, GRAPH)):
        again = train(workshop, config, backend)
        assert first[0] == again[0]
        assert np.array_equal(first[1], again[1])
    np.testing.assert_allclose(graph[0], eager[0], rtol=1e-4)
    np.testing.assert_allclose(graph[1], eager[1], rtol=1e-3, atol=1e-4)
    other = train(workshop, workshop.config(training={"total_step": 10, "seed": 43}))
    assert not np.allclose(other[0], eager[0], rtol=1e-2)


@pytest.mark.parametrize("graph", [False, True], ids=["pynative", "graph"])
def test_half_precision_learns_about_the_same(workshop: Workshop, graph: bool) -> None:
    config = workshop.config(training={"total_step": 2})
    model = sdxl.build(config.model, ms.float16)
    transfer.load(model, config.run.weight, config.model)
    made, backend = plan.make(config), Backend("CPU", graph, ms.float16)
    learned, feed = run.prepare(model, made, backend)
    reports = list(loop.run(model, learned, feed, config, made.updates, backend))
    losses, rows = train(workshop, config)
    assert all(r.finite for r in reports)
    np.testing.assert_allclose([r.loss for r in reports], losses, rtol=2e-3)
    moved = np.concatenate([r.ravel() for r in learned.arrays()])
    start = np.concatenate([r.ravel() for r in run.prepare(model, made, backend)[0].arrays()])
    assert np.linalg.norm(moved - rows) < 0.05 * np.linalg.norm(rows - start)
    assert {p.dtype for p in model.unet.get_parameters() if p.name.endswith("weight")} == {ms.float16}
    assert {p.dtype for p in learned.get_parameters()} == {ms.float32}


@pytest.mark.parametrize("graph", [False, True], ids=["pynative", "graph"])
def test_narrow_weights_learn_the_very_same(workshop: Workshop, tmp_path: Path, graph: bool) -> None:
    """Weights that are widened at every use are the numbers that loading would have made of them."""
    config, backend = workshop.config(training={"total_step": 4}), Backend("CPU", graph, ms.float32)
    transfer.convert(config.run.weight, tmp_path / "half.ckpt", config.model, "float16")
    found = []
    for widened in (math.inf, 300):
        model = sdxl.build(config.model)
        transfer.load(model, tmp_path / "half.ckpt", config.model, widened)
        narrow = [p for p in model.get_parameters() if p.dtype == ms.float16]
        assert len(narrow) == 0 if widened == math.inf else len(narrow) > 100
        found.append(train(workshop, config, backend, model))
    (losses, rows), (same_losses, same_rows) = found
    np.testing.assert_allclose(same_losses, losses, rtol=1e-6)
    np.testing.assert_allclose(same_rows, rows, rtol=1e-5, atol=1e-6)


def test_it_learns(workshop: Workshop) -> None:
    config = workshop.config(training={"total_step": 120, "gradient_accumulation_steps": 2, "learning_rate": 2e-2})
    made = plan.make(config)
    learned, feed = run.prepare(workshop.model, made, EAGER)
    held_out = HeldOut(workshop.model, feed, 24, config.training.seed, GRAPH)
    before = held_out.losses(*learned.arrays())
    for _ in loop.run(workshop.model, learned, feed, config, made.updates, GRAPH):
        pass
    after = held_out.losses(*learned.arrays())
    print(f"held-out loss {before.mean():.4f} before, {after.mean():.4f} after")
    assert after.mean() < 0.97 * before.mean()
    assert (after < before).sum() >= 20
    # Rows moved as far in a random direction do not do that.
    start, _ = run.prepare(workshop.model, made, EAGER)
    random = np.random.default_rng(0)
    stray = []
    for a, b in zip(start.arrays(), learned.arrays(), strict=True):
        way = random.standard_normal(a.shape).astype(np.float32)
        stray.append(a + way * np.linalg.norm(b - a) / np.linalg.norm(way))
    assert held_out.losses(*stray).mean() > after.mean() + 0.5 * (before.mean() - after.mean())


def test_a_run_writes_what_it_says(workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"total_step": 7, "gradient_accumulation_steps": 2, "save_ckpt_interval": 3}
    options |= {"held_out_draws": 2, "held_out_interval": 4}
    preview = {"infer_during_train": True, "infer_interval": 5}
    config = workshop.config(
        training={**options, **preview, "save_path": str(tmp_path / "r"), "log_interval": 2}, sampling={"num_cols": 2}
    )
    last = whole_run(workshop, config)
    place = tmp_path / "r"
    assert last == place / "smallest_7_ti.ckpt"
    assert sorted(p.name for p in place.glob("*_ti.ckpt")) == [f"smallest_{n}_ti.ckpt" for n in (3, 6, 7, "best")]
    assert configuration.load(place / "config.yaml") == config
    records = [json.loads(line) for line in (place / "log.jsonl").read_text().splitlines()]
    measured = [r for r in records if "held_out" in r]
    records = [r for r in records if "loss" in r]
    assert [r["step"] for r in records] == [2, 4, 6, 7]
    assert [r["update"] for r in records] == [1, 2, 3, 4]  # the step left over made one more
    assert records[0]["gradient_norm"] > 0
    assert {"loss", "loss_smoothed", "learning_rate", "seconds", "skipped"} <= set(records[0])
    assert [p.name for p in place.glob("state_*")] == ["state_7.ckpt"]
    assert [r["step"] for r in measured] == [4, 7]
    for record in measured:
        moved = record["held_out"] - record["held_out_before"]
        assert record["held_out_change"] == pytest.approx(moved)
        assert record["held_out_change_low"] < moved < record["held_out_change_high"]
    previews = sorted(p.name for p in (place / "previews").iterdir())
    assert previews == ["before_after.png", "step_0.png", "step_5.png", "step_7.png"]
    assert Image.open(place / "previews" / "step_5.png").size == (32, 16)
    assert recipe(place / "previews" / "step_5.png")["prompts"] == ["a photo of <toy>"]
    before, after, both = (np.asarray(Image.open(place / "previews" / previews[k])) for k in (1, 3, 0))
    assert np.array_equal(both, np.concatenate([before, after], axis=1))
    assert not np.array_equal(before, after)
    concept = files.load(last)
    assert (concept.placeholder, concept.num_vectors, concept.details["step"]) == ("<toy>", 2, 7)
    assert [p.stem for p in sorted(place.glob("*.safetensors"))] == [p.stem for p in sorted(place.glob("*_ti.ckpt"))]
    twin = files.load(last.with_suffix(".safetensors"))
    assert np.array_equal(twin.rows_2, concept.rows_2)
    assert twin.details == concept.details
    assert concept.details["base_model"] == sdxl.fingerprint(workshop.model)
    assert concept.details["recipe"]["training"]["total_step"] == 7
    out = capsys.readouterr().out
    assert "step 7/7  update 4/4  loss " in out
    assert "s/step" in out
    assert "held-out loss" in out


def test_an_earlier_run_is_moved_aside_and_nothing_is_lost(workshop: Workshop, tmp_path: Path) -> None:
    config = workshop.config(training={"total_step": 1, "save_path": str(tmp_path / "r")})
    first = whole_run(workshop, config).read_bytes()
    (tmp_path / "r" / "notes.txt").write_text("mine")
    whole_run(workshop, workshop.config(training={"total_step": 1, "seed": 1, "save_path": str(tmp_path / "r")}))
    whole_run(workshop, config)
    assert (tmp_path / "r" / "earlier_1" / "smallest_1_ti.ckpt").read_bytes() == first
    assert (tmp_path / "r" / "earlier_1" / "smallest_1_ti.safetensors").exists()
    assert (tmp_path / "r" / "earlier_2" / "config.yaml").exists()
    assert (tmp_path / "r" / "notes.txt").read_text() == "mine"


def test_the_autoencoder_is_given_away_unless_previews_need_it(workshop: Workshop, tmp_path: Path) -> None:
    for previews in (False, True):
        options = {"total_step": 1, "infer_during_train": previews, "save_path": str(tmp_path / str(previews))}
        toolkit = api.load(workshop.config(training=options))
        kept = weakref.ref(toolkit.model.first_stage_model)
        run.run(toolkit.model, plan.make(toolkit.config), toolkit.backend)
        gc.collect()
        assert (kept() is not None) is previews


def test_a_folder_that_cannot_be_made_is_named(workshop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    config = workshop.config(training={"save_path": str(tmp_path / "file" / "r")})
    with pytest.raises(UserError, match=r"cannot write to --save_path .*file/r: .*file is no folder; choose another"):
        plan.make(config)
    made = plan.make(workshop.config(training={"save_path": str(tmp_path / "later")}))
    (tmp_path / "later").write_text("")  # it is there by the time the weights are loaded
    with pytest.raises(UserError, match=r"cannot write to --save_path .*later: File exists; choose another folder"):
        folder.opened(made).__enter__()


def test_initial_rows(workshop: Workshop) -> None:
    tables = [
        workshop.model.conditioner.embedders[0].transformer.text_model.embeddings.token_embedding.embedding_table,
        workshop.model.conditioner.embedders[1].model.token_embedding.embedding_table,
    ]
    tables = [t.asnumpy() for t in tables]

    def rows(**concept: object) -> tuple[np.ndarray, np.ndarray]:
        return run.prepare(workshop.model, plan.make(workshop.config(concept=concept)), EAGER)[0].arrays()

    red, cat = 736, 2368  # OpenAI's ids of "red" and "cat"
    for found, table in zip(rows(initializer_token="red cat", num_vectors=3), tables, strict=True):
        assert np.array_equal(found, table[[red, cat, red]])
    for found, table in zip(rows(initializer_token="cat", num_vectors=2), tables, strict=True):
        assert np.array_equal(found, table[[cat, cat]])
    for found, table in zip(rows(num_vectors=60), tables, strict=True):
        assert found.std() == pytest.approx(table.std(), rel=0.1)
        assert abs(found.mean() - table.mean()) < 0.1 * table.std()
        assert len(np.unique(found, axis=0)) == 60


def test_a_batch_tells_sizes_and_prompts_and_is_noised(workshop: Workshop) -> None:
    made = plan.make(workshop.config(training={"train_batch_size": 4}, data={"flip": True}))
    encoded = latents.encode(workshop.model.first_stage_model, made.pictures, True, 0.13025)
    feed = Feed(made, encoded)
    batch = feed.batch(0)
    assert batch.x.shape == (4, 4, 8, 8)
    told = {tuple(row) for row in batch.sizes.asnumpy().astype(int).tolist()}
    assert {(t[0], t[4], t[5]) for t in told} == {(20, 16, 16)}
    assert {t[1] for t in told} == {24, 25, 26}
    assert all((batch.ids_1.asnumpy() == 49408).sum(1) == 1)
    assert (batch.ids_1.asnumpy()[:, -1] == 49407).all()
    assert (batch.ids_2.asnumpy()[:, -1] == 0).all()
    found = batch.ids_2.asnumpy()[np.arange(4), batch.pool_position.asnumpy()]
    assert (found == 49407).all()
    sigma = feed.sigmas[batch.timestep.asnumpy().astype(int)].reshape(-1, 1, 1, 1)
    clean = batch.x.asnumpy() * np.sqrt(sigma**2 + 1) - sigma * batch.noise.asnumpy()
    spread = np.exp(0.5 * np.stack(encoded.log_variance)).max() * 0.13025
    assert np.abs(clean).max() < np.abs(np.stack(encoded.mean)).max() * 0.13025 + 6 * spread
    assert abs(batch.noise.asnumpy().std() - 1) < 0.1


def test_a_mask_and_captions_reach_the_batch(workshop: Workshop, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    shutil.copytree(workshop.folder / "pictures", pictures)
    with Image.open(pictures / "0.png") as image:
        mask = Image.new("L", image.size)
        mask.paste(255, (0, 0, image.width // 2, image.height))
    mask.save(pictures / "0.mask.png")
    (pictures / "1.txt").write_text("{} upside down")
    data = {"data_path": str(pictures), "unmasked_weight": 0.5, "flip": True}
    made = plan.make(workshop.config(data=data, loss={"min_snr_gamma": 2.0}))
    assert made.captions == (None, "<toy> upside down", None)
    feed = run.prepare(workshop.model, made, EAGER)[1]
    (half,) = masks.of_latents(made.pictures[0].mask[None], 2, 0.5)
    assert half[0, 0] == 2 * half[0, -1]  # the left counts twice what the right does
    for picture, mirrored in ((0, False), (0, True), (1, False)):
        for plain in (False, True):
            batch = feed.assemble([Sample(picture, mirrored, 0, 3, 0)], 1, "test", plain)
            level = 1.0 if plain else min(1.0, 2.0 * feed.sigmas[3] ** 2)
            whole = half[:, ::-1] if mirrored else half
            expected = (whole if picture == 0 else np.ones((8, 8))) * level
            np.testing.assert_allclose(batch.weight.asnumpy()[0, 0], expected, rtol=1e-5)
    shown = [batches for step in range(12) for batches in [feed.batch(step)]]
    upside = made.tokenizer(["<toy> upside down"], padding=0)[0]
    told = [np.array_equal(batch.ids_2.asnumpy()[0], upside) for batch in shown]
    assert sum(told) == 4  # the captioned picture's turn in each of four epochs
    without = plan.make(workshop.config(data={**data, "captions": False, "masks": False}))
    assert without.captions == ()
    assert all(picture.mask is None for picture in without.pictures)


@pytest.mark.parametrize("graph", [False, True], ids=["pynative", "graph"])
def test_buckets_keep_shapes_and_compile_one_graph_each(
    workshop: Workshop,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    graph: bool,
) -> None:
    caplog.set_level(logging.INFO, "gm")
    monkeypatch.setenv("GM_GRAPHS", str(tmp_path / "graphs"))
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name, size in {"wide": (48, 20), "square": (20, 20), "tall": (20, 48), "taller": (40, 96)}.items():
        noise = np.random.default_rng(len(name)).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(noise).save(pictures / f"{name}.png")
    data = {"data_path": str(pictures), "buckets": True, "bucket_step": 8}
    config = workshop.config(data=data, training={"total_step": 12, "gradient_accumulation_steps": 3})
    made, backend = plan.make(config), GRAPH if graph else EAGER
    assert [p.pixels.shape[1:] for p in made.pictures] == [(16, 16), (24, 8), (24, 8), (8, 24)]
    assert "height × width: 1 of 16×16, 2 of 24×8, 1 of 8×24" in caplog.text
    learned, feed = run.prepare(workshop.model, made, backend)
    told = {tuple(feed.batch(step).sizes.asnumpy()[0].astype(int)) for step in range(4)}
    # Original height and width, the corner of the cut, the size that was aimed at.
    assert told == {(20, 20, 0, 0, 16, 16), (48, 20, 0, 1, 24, 8), (96, 40, 0, 1, 24, 8), (20, 48, 1, 0, 8, 24)}
    shapes = [feed.batch(step).x.shape[2:] for step in range(12)]
    assert {shape: shapes.count(shape) for shape in shapes} == {(8, 8): 3, (12, 4): 6, (4, 12): 3}
    reports = list(loop.run(workshop.model, learned, feed, config, made.updates, backend))
    assert all(report.finite for report in reports)
    if graph:
        assert len(list((tmp_path / "graphs").glob("*.mindir"))) == 3 + 1  # a step for each shape, and the update
    with pytest.raises(UserError, match="--bucket_step 64 is too large for --resolution 16; there is no such size"):
        plan.make(workshop.config(data={**data, "bucket_step": 64}))


def test_rows_can_start_from_a_learned_file(workshop: Workshop, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    found = Concept("<old>", *(random.standard_normal((2, width), np.float32) for width in (16, 24)))
    files.save(found, tmp_path / "old.safetensors")
    concept = {"initializer_file": str(tmp_path / "old.safetensors"), "num_vectors": 3}
    made = plan.make(workshop.config(concept=concept))
    rows = run.prepare(workshop.model, made, EAGER)[0].arrays()
    for ours, theirs in zip(rows, (found.rows_1, found.rows_2), strict=True):
        assert np.array_equal(ours, theirs[[0, 1, 0]])
    with pytest.raises(UserError, match="both say where to start; give one of them"):
        plan.make(workshop.config(concept={**concept, "initializer_token": "cat"}))
    wide = Concept("<wide>", np.zeros((1, 768), np.float32), np.zeros((1, 1280), np.float32))
    files.save(wide, tmp_path / "old.safetensors")
    with pytest.raises(UserError, match="rows 768 and 1280 wide, the model's are 16 and 24"):
        plan.make(workshop.config(concept=concept))


def test_two_ranks_show_what_one_shows_with_twice_the_batch(workshop: Workshop) -> None:
    made = plan.make(workshop.config(training={"train_batch_size": 2}))
    encoded = latents.encode(workshop.model.first_stage_model, made.pictures, False, 0.13025)
    whole = Feed(made, encoded)
    halves = [Feed(plan.make(workshop.config()), encoded, rank, 2) for rank in (0, 1)]
    for field, parts in zip(whole.batch(3), zip(*(h.batch(3) for h in halves), strict=True), strict=True):
        assert np.array_equal(field.asnumpy(), np.concatenate([p.asnumpy() for p in parts]))


def test_latents_are_drawn_from_the_posterior(workshop: Workshop) -> None:
    made = plan.make(workshop.config())
    encoded = latents.encode(workshop.model.first_stage_model, made.pictures, True, 0.5)
    assert [mean.shape for mean in encoded.mean] == [(2, 4, 8, 8)] * 3
    noise = np.ones(encoded.mean[0].shape[1:], np.float32)
    high, low = encoded.draw(1, 0, noise), encoded.draw(1, 0, -noise)
    np.testing.assert_allclose((high + low) / 2, encoded.mean[1][0] * 0.5, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose((high - low) / 2, np.exp(0.5 * encoded.log_variance[1][0]) * 0.5, rtol=1e-3, atol=1e-5)
    assert not np.allclose(encoded.mean[1][0], encoded.mean[1][1])


def test_the_progress_line_in_a_file_and_numbers_json_has_not(tmp_path: Path) -> None:
    stream = io.StringIO()
    console = Console(tmp_path / "log.jsonl", steps=3, updates=3, log_interval=1, stream=stream)
    for step, loss in ((1, 0.5), (2, float("nan")), (3, 0.7)):
        console.show(loop.Report(step, step, loss, bool(np.isfinite(loss)), 1e-3, 1.0, 0.25))
    console.close()
    lines = stream.getvalue().splitlines()
    assert lines[0] == "step 1/3  update 1/3  loss 0.5000  lr 1.00e-03  0.25 s/step  … left"
    assert lines[-1] == "step 3/3  update 3/3  loss 0.6010  lr 1.00e-03  0.25 s/step  0 s left  skipped 1"
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert records[1]["loss"] is None
    assert records[2]["skipped"] == 1


def test_smoothing_is_unbiased_at_the_start() -> None:
    average = Smoothed()
    assert average.add(3.0) == pytest.approx(3.0)
    assert average.add(5.0) == pytest.approx((0.98 * 0.02 * 3 + 0.02 * 5) / (1 - 0.98**2))


def test_an_initializer_longer_than_the_rows_is_announced(workshop: Workshop, caplog: pytest.LogCaptureFixture) -> None:
    plan.make(workshop.config(concept={"initializer_token": "red cat", "num_vectors": 2}))
    assert "--initializer_token" not in caplog.text
    plan.make(workshop.config(concept={"initializer_token": "red cat", "num_vectors": 1}))
    assert "--initializer_token 'red cat' has 2 tokens, of which --num_vectors 1 uses the first 1" in caplog.text


def test_non_pictures_are_named_in_the_log(
    workshop: Workshop, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    picture = (workshop.folder / "pictures" / "0.png").read_bytes()
    (tmp_path / "a.png").write_bytes(picture)
    (tmp_path / "notes.txt").write_text("not a picture")
    with caplog.at_level(logging.INFO, logger="gm"):
        made = plan.make(workshop.config(data={"data_path": str(tmp_path)}))
    assert len(made.pictures) == 1
    assert "notes.txt" in caplog.text
