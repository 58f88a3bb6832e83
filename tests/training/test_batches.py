"""Batches: size conditioning, prompts, noise, masks, bucket shapes, and the same on any number of ranks."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from PIL import Image

from gm.data import latent_cache, masks
from gm.embeddings.embedding import LoadedEmbeddings
from gm.errors import UserError
from gm.runtime.backend import Backend
from gm.sampling.conditioning import PromptEncoder
from gm.text.prompt_parser import parse
from gm.training import setup, trainer
from gm.training.batch_sampler import Sample
from gm.training.batches import BatchLoader
from tests.project import Workshop

EAGER = Backend("CPU", graph=False, dtype=ms.float32)
GRAPH = Backend("CPU", graph=True, dtype=ms.float32)


def test_batch_has_sizes_prompts_and_noise(workshop: Workshop) -> None:
    training_setup = setup.prepare(workshop.config(training={"train_batch_size": 4}, data={"random_flip": True}))
    encoded = latent_cache.encode_images(workshop.model.first_stage_model, training_setup.images, True, 0.13025)
    loader = BatchLoader(training_setup, encoded)
    batch = loader.batch(0)
    assert batch.x.shape == (4, 4, 8, 8)
    told = {tuple(row) for row in batch.sizes.asnumpy().astype(int).tolist()}
    assert {(t[0], t[4], t[5]) for t in told} == {(20, 16, 16)}
    assert {t[1] for t in told} == {24, 25, 26}
    assert all((batch.ids[0].asnumpy() == 49408).sum(1) == 1)
    assert (batch.ids[0].asnumpy()[:, -1] == 49407).all()
    assert (batch.ids[1].asnumpy()[:, -1] == 0).all()
    found = batch.ids[1].asnumpy()[np.arange(4), batch.pool_position.asnumpy()]
    assert (found == 49407).all()
    sigma = loader.sigmas[batch.timesteps.asnumpy().astype(int)].reshape(-1, 1, 1, 1)
    clean = batch.x.asnumpy() * np.sqrt(sigma**2 + 1) - sigma * batch.target.asnumpy()
    spread = np.exp(0.5 * np.stack(encoded.log_variance)).max() * 0.13025
    assert np.abs(clean).max() < np.abs(np.stack(encoded.mean)).max() * 0.13025 + 6 * spread
    assert abs(batch.target.asnumpy().std() - 1) < 0.1


def test_masks_and_captions_reach_the_batch(workshop: Workshop, tmp_path: Path) -> None:
    images = tmp_path / "images"
    shutil.copytree(workshop.folder / "images", images)
    with Image.open(images / "0.png") as opened:
        mask = Image.new("L", opened.size)
        mask.paste(255, (0, 0, opened.width // 2, opened.height))
    mask.save(images / "0.mask.png")
    (images / "1.txt").write_text("{} upside down")
    concept = {"data_path": str(images)}
    data = {"unmasked_weight": 0.5, "random_flip": True}
    training_setup = setup.prepare(workshop.config(concept=concept, data=data, loss={"min_snr_gamma": 2.0}))
    assert training_setup.concepts[0].captions == ((), ("<toy> upside down",), ())
    loader = trainer.prepare(workshop.model, training_setup, EAGER).batches
    (half,) = masks.loss_weights(training_setup.images[0].mask[None], 2, 0.5)
    assert half[0, 0] == 2 * half[0, -1]  # the left counts twice what the right does
    for number, flipped in ((0, False), (0, True), (1, False)):
        for plain in (False, True):
            batch = loader.assemble([Sample(number, flipped, 0, 3, 0)], "test", plain)
            level = 1.0 if plain else min(1.0, 2.0 * loader.sigmas[3] ** 2)
            whole = half[:, ::-1] if flipped else half
            expected = (whole if number == 0 else np.ones((8, 8))) * level
            np.testing.assert_allclose(batch.loss_weight.asnumpy()[0, 0], expected, rtol=1e-5)
    shown = [batches for step in range(12) for batches in [loader.batch(step)]]
    upside = training_setup.tokenizer(["<toy> upside down"], padding=0)[0]
    told = [np.array_equal(batch.ids[1].asnumpy()[0], upside) for batch in shown]
    assert sum(told) == 4  # the captioned image's turn in each of four epochs
    without = setup.prepare(workshop.config(concept=concept, data={**data, "captions": False, "masks": False}))
    assert without.concepts[0].captions == ()
    assert all(image.mask is None for image in without.images)


def test_long_captions_are_encoded_as_in_sampling(
    workshop: Workshop, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = tmp_path / "images"
    shutil.copytree(workshop.folder / "images", images)
    long = "<toy> on a table, " + ", ".join(["a red spotted mug"] * 25) + ", on a (green:1.2) <toy> background"
    (images / "0.txt").write_text(f"{long}\na <toy>")
    caplog.set_level(logging.INFO, "gm")
    negative = {"placeholder_token": "<bad>", "num_vectors": 1, "negative": True}
    config = workshop.config(concept={"data_path": str(images)}, concepts=[{}, negative])
    training_setup = setup.prepare(config)
    encoded = latent_cache.encode_images(workshop.model.first_stage_model, training_setup.images, False, 0.13025)
    loader = BatchLoader(training_setup, encoded)
    assert (
        f"1 prompts need 2 chunks of tokens, such as '{long[:60]}…'; all prompts of the run get as many" in caplog.text
    )
    prompts = loader.prompt_choices[0].captions
    assert len(prompts) == 2
    assert loader.ids[0].shape[1:] == (2, 77)
    batch = loader.assemble([Sample(0, False, prompt, 3, 0) for prompt in prompts], "test")
    vectors = {
        name: np.random.default_rng(k).standard_normal((3, encoder.width), dtype=np.float32)
        for k, (name, encoder) in enumerate(config.model.text_encoders.items())
    }
    ours = workshop.model.conditioner(batch.ids, tuple(map(Tensor, vectors.values())), batch.pool_position, batch.sizes)
    texts = [parse(text, training_setup.tokenizer, 1, weights=False).variants[0] for text in (long, "a <toy>")]
    assert [len(text) for text in texts] == [2, 1]
    encoder = PromptEncoder(workshop.model, EAGER, "end_of_text")
    theirs = encoder.encode(texts, LoadedEmbeddings(training_setup.tokenizer, vectors), batch.sizes.asnumpy())
    assert ours[0].shape == (2, 2 * 77, 40)
    for mine, expected in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine.asnumpy(), expected.asnumpy(), rtol=1e-4, atol=1e-5)
    assert loader.negative is not None
    assert [ids.tolist() for ids in loader.negative.ids] == [
        [[[49406, 49410, 49407, *[padding] * 74], [49406, 49407, *[padding] * 75]]] for padding in (49407, 0)
    ]
    assert loader.negative.pool_position.tolist() == [2]


def test_prompts_of_75_tokens_are_a_sequence_each_as_ever(workshop: Workshop, tmp_path: Path) -> None:
    images = tmp_path / "images"
    shutil.copytree(workshop.folder / "images", images)
    captions = ["<toy> " + "cat " * 73, "a <toy>, " + "mug, " * 35]  # 75 and 74 tokens
    (images / "0.txt").write_text("\n".join(captions))
    training_setup = setup.prepare(workshop.config(concept={"data_path": str(images)}))
    encoded = latent_cache.encode_images(workshop.model.first_stage_model, training_setup.images, False, 0.13025)
    loader = BatchLoader(training_setup, encoded)
    prompts = list(loader.prompt_choices[0].captions)
    for ids, padding in zip(loader.ids, (49407, 0), strict=True):
        expected = training_setup.tokenizer([caption.strip() for caption in captions], padding)
        np.testing.assert_array_equal(ids[prompts], expected)
        assert ids.dtype == np.int32
    assert loader.pool_positions[prompts].tolist() == [76, 75]


@pytest.mark.parametrize("graph", [False, pytest.param(True, marks=pytest.mark.graph)], ids=["pynative", "graph"])
def test_buckets_keep_shapes_and_compile_one_graph_each(
    workshop: Workshop,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    graph: bool,
) -> None:
    caplog.set_level(logging.INFO, "gm")
    monkeypatch.setenv("GM_GRAPHS", str(tmp_path / "graphs"))
    images = tmp_path / "images"
    images.mkdir()
    for name, size in {"wide": (48, 20), "square": (20, 20), "tall": (20, 48), "taller": (40, 96)}.items():
        noise = np.random.default_rng(len(name)).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(noise).save(images / f"{name}.png")
    concept = {"data_path": str(images)}
    data = {"enable_bucket": True, "bucket_reso_steps": 8}
    config = workshop.config(concept=concept, data=data, training={"total_step": 12, "gradient_accumulation_steps": 3})
    training_setup, backend = setup.prepare(config), GRAPH if graph else EAGER
    assert [p.pixels.shape[1:] for p in training_setup.images] == [(16, 16), (24, 8), (24, 8), (8, 24)]
    assert "height × width: 1 of 16×16, 2 of 24×8, 1 of 8×24" in caplog.text
    run = trainer.prepare(workshop.model, training_setup, backend)
    loader = run.batches
    told = {tuple(loader.batch(step).sizes.asnumpy()[0].astype(int)) for step in range(4)}
    # Original height and width, the corner of the cut, the size that was aimed at.
    assert told == {(20, 20, 0, 0, 16, 16), (48, 20, 0, 1, 24, 8), (96, 40, 0, 1, 24, 8), (20, 48, 1, 0, 8, 24)}
    shapes = [loader.batch(step).x.shape[2:] for step in range(12)]
    assert {shape: shapes.count(shape) for shape in shapes} == {(8, 8): 3, (12, 4): 6, (4, 12): 3}
    assert all(result.finite for result in run.steps())
    if graph:
        assert len(list((tmp_path / "graphs").glob("*.mindir"))) == 3 + 1  # a step for each shape, and the update
    with pytest.raises(
        UserError, match="--bucket_reso_steps 64 is too large for --resolution 16; there is no such size"
    ):
        setup.prepare(workshop.config(concept=concept, data={**data, "bucket_reso_steps": 64}))


def test_two_ranks_use_the_batches_of_one_with_twice_the_size(workshop: Workshop) -> None:
    training_setup = setup.prepare(workshop.config(training={"train_batch_size": 2}))
    encoded = latent_cache.encode_images(workshop.model.first_stage_model, training_setup.images, False, 0.13025)
    whole = BatchLoader(training_setup, encoded)
    halves = [BatchLoader(setup.prepare(workshop.config()), encoded, rank, 2) for rank in (0, 1)]
    for field, parts in zip(whole.batch(3).inputs, zip(*(h.batch(3).inputs for h in halves), strict=True), strict=True):
        assert np.array_equal(field.asnumpy(), np.concatenate([p.asnumpy() for p in parts]))


def test_latents_are_sampled_from_the_posterior(workshop: Workshop) -> None:
    training_setup = setup.prepare(workshop.config())
    encoded = latent_cache.encode_images(workshop.model.first_stage_model, training_setup.images, True, 0.5)
    assert [mean.shape for mean in encoded.mean] == [(2, 4, 8, 8)] * 3
    noise = np.ones(encoded.mean[0].shape[1:], np.float32)
    high, low = encoded.sample(1, 0, noise), encoded.sample(1, 0, -noise)
    np.testing.assert_allclose((high + low) / 2, encoded.mean[1][0] * 0.5, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose((high - low) / 2, np.exp(0.5 * encoded.log_variance[1][0]) * 0.5, rtol=1e-3, atol=1e-5)
    assert not np.allclose(encoded.mean[1][0], encoded.mean[1][1])


def test_files_that_are_not_images_are_logged(
    workshop: Workshop, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    image = (workshop.folder / "images" / "0.png").read_bytes()
    (tmp_path / "a.png").write_bytes(image)
    (tmp_path / "notes.txt").write_text("not an image")
    with caplog.at_level(logging.INFO, logger="gm"):
        training_setup = setup.prepare(workshop.config(concept={"data_path": str(tmp_path)}))
    assert len(training_setup.images) == 1
    assert "notes.txt" in caplog.text
