"""The recipe of the tiny model: its optimizer, its interruptions, and the whole of it in miniature."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor, nn
from PIL import Image
from safetensors.numpy import load_file

from examples.tiny_sdxl import curves, diffusion, learning, train, vae
from examples.tiny_sdxl.learning import Learner, Recipe
from gm.checkpoints import loading
from gm.models import sdxl
from gm.models.layers import Linear
from gm.runtime.backend import Backend
from gm.text.tokenizer import VOCAB_SIZE
from tests.project import Workshop
from tests.reference.inputs import relative_error

ONE = Backend("CPU", graph=False, dtype=ms.float32)
GRAPH = Backend("CPU", graph=True, dtype=ms.float32)


class Error(nn.Cell):
    """Mean squared error of a linear map."""

    def __init__(self) -> None:
        super().__init__(auto_prefix=False)
        self.map = Linear(3, 2, ms.float32)

    def construct(self, x: Tensor, y: Tensor) -> Tensor:
        error = self.map(x) - y
        return (error * error).mean()


def batch(update: int) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(update)
    return Tensor(rng.standard_normal((5, 3)).astype(np.float32)), Tensor(10 * rng.random((5, 2)).astype(np.float32))


def learner(recipe: Recipe, where: Backend = ONE) -> Learner:
    loss = Error()
    parameters = list(loss.map.get_parameters())
    learning.initialise(parameters, 0, ())
    return Learner(loss, parameters, recipe, where)


@pytest.mark.parametrize("where", [ONE, GRAPH], ids=["pynative", "graph"])
def test_it_is_adam_with_clipped_gradients(where: Backend) -> None:
    recipe = Recipe(updates=20, batch=5, rate=0.1, warmup=4)
    ours = learner(recipe, where)
    theirs = torch.nn.Linear(3, 2)
    with torch.no_grad():
        theirs.weight.copy_(torch.from_numpy(ours.parameters[0].asnumpy()))
        theirs.bias.zero_()
    adam = torch.optim.Adam(theirs.parameters(), lr=1.0, betas=(recipe.beta1, recipe.beta2), eps=1e-8)
    for update in range(20):
        x, y = batch(update)
        adam.zero_grad()
        loss = torch.nn.functional.mse_loss(theirs(torch.from_numpy(x.asnumpy())), torch.from_numpy(y.asnumpy()))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), recipe.max_norm)
        adam.param_groups[0]["lr"] = recipe.rate_at(update)
        adam.step()
        assert ours.step(x, y) == pytest.approx(loss.item(), rel=1e-4)
    assert relative_error(ours.parameters[0].asnumpy(), theirs.weight.detach().numpy()) < 1e-4


def test_the_rate_rises_stays_and_falls_to_nothing() -> None:
    recipe = Recipe(updates=1000, batch=1, rate=2.0, warmup=10)
    rates = [recipe.rate_at(update) for update in range(1000)]
    assert rates[:10] == pytest.approx([0.2 * k for k in range(1, 11)])
    assert rates[10:500] == [2.0] * 490
    assert all(a > b for a, b in itertools.pairwise(rates[501:]))
    assert rates[-1] < 1e-4


def test_the_average_follows_the_weights_and_is_put_in_place() -> None:
    one = learner(Recipe(updates=50, batch=5, rate=0.1, average=0.5))
    seen = []
    for update in range(50):
        one.step(*batch(update))
        seen.append(one.weights.copy())
    expected = sum(0.5 ** (k + 1) * weights for k, weights in enumerate(seen[:-31:-1]))
    np.testing.assert_allclose(one.averaged, expected, atol=1e-6)
    one.use_average()
    assert np.array_equal(np.concatenate([p.asnumpy().ravel() for p in one.parameters]), one.averaged)


def test_what_was_interrupted_ends_as_what_was_not(tmp_path: Path) -> None:
    recipe = Recipe(updates=12, batch=5, rate=0.1)
    whole, half, rest = learner(recipe), learner(recipe), learner(recipe)
    learning.run(whole, batch, tmp_path / "whole.npz", lambda text: None)
    for update in range(7):
        half.step(*batch(update))
    half.save(tmp_path / "half.npz")
    said: list[str] = []
    learning.run(rest, batch, tmp_path / "half.npz", said.append)
    assert np.array_equal(rest.averaged, whole.averaged)
    assert rest.curve == whole.curve
    assert len(said) == 1
    assert said[0].startswith("update 12/12  loss ")


def test_latents_are_standardised_and_images_stay(workshop: Workshop) -> None:
    model = sdxl.build(workshop.config().model)
    loading.load_weights(model, workshop.folder / "weights.ckpt", workshop.config().model)
    network, factor = model.first_stage_model, workshop.config().model.vae.scale_factor
    images = vae.images(range(40), 0, 16)
    mean, log_variance = (x.asnumpy() for x in network.encode(Tensor(images)))
    before = network.decode(Tensor(mean)).asnumpy()
    vae.standardise(network, factor, images)
    latents, spread = (x.asnumpy() for x in network.encode(Tensor(images)))
    np.testing.assert_allclose(factor * latents.mean((0, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(factor * latents.std((0, 2, 3)), 1, rtol=1e-4)
    assert relative_error(network.decode(Tensor(latents)).asnumpy(), before) < 1e-5
    ratio = np.exp(0.5 * (spread - log_variance)).mean((0, 2, 3)) * mean.std((0, 2, 3)) * factor
    np.testing.assert_allclose(ratio, 1, rtol=1e-4)  # the posterior's width follows


def test_a_sample_without_caption_is_told_zeros(workshop: Workshop) -> None:
    model = sdxl.build(workshop.config().model)
    loading.load_weights(model, workshop.folder / "weights.ckpt", workshop.config().model)
    loader = diffusion.Feed(np.zeros((3, 4, 8, 8), np.float32), 0, model.config)
    rows = diffusion.rows(len(loader.known), model.config, 0)
    loss = diffusion.Loss(model, rows)
    told = list(loader.batch(range(4)))
    other = [*told[:3], *(t.copy() for t in told[3:])]
    other[3] = other[4] = Tensor(np.roll(told[3].asnumpy(), 1, 0))
    for value, is_same in ((0.0, True), (1.0, False)):
        told[7] = other[7] = Tensor(np.full((4, 1), value, np.float32))
        assert (float(loss(*told).asnumpy()) == float(loss(*other).asnumpy())) == is_same


def test_what_was_learned_of_words_stands_in_the_tables(workshop: Workshop) -> None:
    model = sdxl.build(workshop.config().model)
    loading.load_weights(model, workshop.folder / "weights.ckpt", workshop.config().model)
    loader = diffusion.Feed(np.random.default_rng(0).standard_normal((3, 4, 8, 8)).astype(np.float32), 0, model.config)
    rows = diffusion.rows(len(loader.known), model.config, 0)
    loss, batch = diffusion.Loss(model, rows), list(loader.batch(range(4)))
    learned = loss(*batch).asnumpy()
    for k in (3, 4):  # the ids that the published tokenizer gives
        ids = batch[k].asnumpy()
        batch[k] = Tensor(
            np.where(ids < VOCAB_SIZE, ids, loader.known[np.maximum(ids - VOCAB_SIZE, 0)]).astype(np.int32)
        )
    assert relative_error(loss(*batch).asnumpy(), learned) > 1e-4
    diffusion.fill_tables(model, loader.known, rows, 0)
    assert relative_error(loss(*batch).asnumpy(), learned) < 1e-6


def recipe_in_miniature(workshop: Workshop, state: Path, ms_mode: int, *launcher: str) -> dict[str, np.ndarray]:
    flags = {
        "--config": workshop.yaml,
        "--state": state,
        "--target": state / "model.safetensors",
        "--autoencoder_updates": 4,
        "--updates": 4,
        "--ms_mode": ms_mode,
        "--scenes": 70,
        "--is_parallel": bool(launcher),
    }
    pairs = [str(part) for pair in flags.items() for part in pair]
    command = [*launcher, sys.executable, train.__file__, *pairs]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return load_file(state / "model.safetensors")


@pytest.mark.slow
def test_the_whole_recipe_goes_on_and_is_the_same_compiled_and_shared(workshop: Workshop, tmp_path: Path) -> None:
    whole = recipe_in_miniature(workshop, tmp_path / "whole", 1)
    model = sdxl.build(workshop.config().model)
    loading.load_weights(model, tmp_path / "whole" / "model.safetensors", workshop.config().model)
    mpirun = (shutil.which("mpirun") or "mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2")
    shared = recipe_in_miniature(workshop, tmp_path / "shared", 0, *mpirun)
    assert list(shared) == list(whole)
    worst = max(np.abs(shared[name].astype(np.float32) - whole[name].astype(np.float32)).max() for name in whole)
    assert worst < 0.02  # float16 files; Adam turns the last bits of tiny gradients into steps
    again = recipe_in_miniature(workshop, tmp_path / "whole", 1)
    assert all(np.array_equal(again[name], whole[name]) for name in whole)


def test_the_curves_are_kept_and_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = {"autoencoder": [float(k) for k in range(25, 0, -1)], "diffusion": [4.0] * 10}
    train.write_curves(losses, tmp_path / "curves.json")
    kept = json.loads((tmp_path / "curves.json").read_text())
    assert kept == {"every": 10, "autoencoder": [20.5, 10.5, 3.0], "diffusion": [4.0]}
    target = tmp_path / "curves.png"
    monkeypatch.setattr(sys, "argv", ["curves.py", "--source", str(tmp_path / "curves.json"), "--target", str(target)])
    curves.main()
    with Image.open(target) as image:
        assert np.asarray(image.convert("L")).std() > 10


def test_every_weight_that_is_read_learns(workshop: Workshop) -> None:
    model = sdxl.build(workshop.config().model)
    loading.load_weights(model, workshop.folder / "weights.ckpt", workshop.config().model)
    loader = diffusion.Feed(np.random.default_rng(0).standard_normal((3, 4, 8, 8)).astype(np.float32), 0, model.config)
    rows = diffusion.rows(len(loader.known), model.config, 0)
    parameters = [*diffusion.trained(model), *rows]
    one = Learner(diffusion.Loss(model, rows), parameters, Recipe(updates=1, batch=8, rate=1e-3), ONE)
    _, gradients = one.gradient(*loader.batch(range(8)))
    still = {p.name for p, g in zip(parameters, gradients, strict=True) if not np.abs(g.asnumpy()).max()}
    last = f"text_model.encoder.layers.{model.config.text_encoder_1.layers - 1}."
    assert all(last in name or "final_layer_norm" in name for name in still)  # published, never read by SDXL
    assert len(still) == 18
