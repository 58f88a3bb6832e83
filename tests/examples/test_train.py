"""Training of the tiny model: optimizer, resuming, and the whole training in miniature."""

from __future__ import annotations

import itertools
import json
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

from examples.tiny_sdxl import diffusion, loss_curves, train, trainer, vae
from examples.tiny_sdxl.trainer import Hyperparameters, Trainer
from gm.checkpoints import loading
from gm.models import stable_diffusion
from gm.models.layers import Linear
from gm.runtime.backend import Backend
from gm.text.tokenizer import VOCAB_SIZE
from tests.project import MPIRUN, Workshop
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


def toy_trainer(hyperparameters: Hyperparameters, where: Backend = ONE) -> Trainer:
    loss = Error()
    parameters = list(loss.map.get_parameters())
    trainer.initialize(parameters, 0, ())
    return Trainer(loss, parameters, hyperparameters, where)


@pytest.mark.parametrize("where", [ONE, GRAPH], ids=["pynative", "graph"])
def test_optimizer_equals_adam_with_clipped_gradients(where: Backend) -> None:
    hyperparameters = Hyperparameters(updates=20, batch=5, rate=0.1, warmup=4)
    ours = toy_trainer(hyperparameters, where)
    theirs = torch.nn.Linear(3, 2)
    with torch.no_grad():
        theirs.weight.copy_(torch.from_numpy(ours.parameters[0].asnumpy()))
        theirs.bias.zero_()
    adam = torch.optim.Adam(theirs.parameters(), lr=1.0, betas=(hyperparameters.beta1, hyperparameters.beta2), eps=1e-8)
    for update in range(20):
        x, y = batch(update)
        adam.zero_grad()
        loss = torch.nn.functional.mse_loss(theirs(torch.from_numpy(x.asnumpy())), torch.from_numpy(y.asnumpy()))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), hyperparameters.max_norm)
        adam.param_groups[0]["lr"] = hyperparameters.rate_at(update)
        adam.step()
        assert ours.step(x, y) == pytest.approx(loss.item(), rel=1e-4)
    assert relative_error(ours.parameters[0].asnumpy(), theirs.weight.detach().numpy()) < 1e-4


def test_learning_rate_warms_up_stays_and_decays() -> None:
    hyperparameters = Hyperparameters(updates=1000, batch=1, rate=2.0, warmup=10)
    rates = [hyperparameters.rate_at(update) for update in range(1000)]
    assert rates[:10] == pytest.approx([0.2 * k for k in range(1, 11)])
    assert rates[10:500] == [2.0] * 490
    assert all(a > b for a, b in itertools.pairwise(rates[501:]))
    assert rates[-1] < 1e-4


def test_moving_average_follows_the_weights_and_replaces_them() -> None:
    one = toy_trainer(Hyperparameters(updates=50, batch=5, rate=0.1, average=0.5))
    seen = []
    for update in range(50):
        one.step(*batch(update))
        seen.append(one.weights.copy())
    expected = sum(0.5 ** (k + 1) * weights for k, weights in enumerate(seen[:-31:-1]))
    np.testing.assert_allclose(one.averaged, expected, atol=1e-6)
    one.use_average()
    assert np.array_equal(np.concatenate([p.asnumpy().ravel() for p in one.parameters]), one.averaged)


def test_resumed_training_equals_uninterrupted_training(tmp_path: Path) -> None:
    hyperparameters = Hyperparameters(updates=12, batch=5, rate=0.1)
    whole, half, rest = toy_trainer(hyperparameters), toy_trainer(hyperparameters), toy_trainer(hyperparameters)
    trainer.train(whole, batch, tmp_path / "whole.npz", lambda text: None)
    for update in range(7):
        half.step(*batch(update))
    half.save(tmp_path / "half.npz")
    lines: list[str] = []
    trainer.train(rest, batch, tmp_path / "half.npz", lines.append)
    assert np.array_equal(rest.averaged, whole.averaged)
    assert rest.curve == whole.curve
    assert len(lines) == 1
    assert lines[0].startswith("update 12/12  loss ")


def test_standardized_latents_decode_to_the_same_images(workshop: Workshop) -> None:
    model = stable_diffusion.build(workshop.config().model)
    loading.load_weights(model, workshop.folder / "weights.ckpt", workshop.config().model)
    network, factor = model.first_stage_model, workshop.config().model.vae.scale_factor
    images = vae.images(range(40), 0, 16)
    mean, log_variance = (x.asnumpy() for x in network.encode(Tensor(images)))
    before = network.decode(Tensor(mean)).asnumpy()
    vae.standardize(network, factor, images)
    latents, spread = (x.asnumpy() for x in network.encode(Tensor(images)))
    np.testing.assert_allclose(factor * latents.mean((0, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(factor * latents.std((0, 2, 3)), 1, rtol=1e-4)
    assert relative_error(network.decode(Tensor(latents)).asnumpy(), before) < 1e-5
    ratio = np.exp(0.5 * (spread - log_variance)).mean((0, 2, 3)) * mean.std((0, 2, 3)) * factor
    np.testing.assert_allclose(ratio, 1, rtol=1e-4)  # the posterior's width follows


def test_sample_without_caption_does_not_depend_on_its_ids(workshop: Workshop) -> None:
    model = stable_diffusion.build(workshop.config().model)
    loading.load_weights(model, workshop.folder / "weights.ckpt", workshop.config().model)
    batches = diffusion.Batches(np.zeros((3, 4, 8, 8), np.float32), 0, model.config)
    embeddings = diffusion.embedding_parameters(len(batches.known), model.config, 0)
    loss = diffusion.Loss(model, embeddings)
    inputs = list(batches.batch(range(4)))
    other = [t.copy() for t in inputs]
    other[6] = other[7] = Tensor(np.roll(inputs[6].asnumpy(), 1, 0))
    for value, is_same in ((0.0, True), (1.0, False)):
        inputs[5] = other[5] = Tensor(np.full((4, 1), value, np.float32))
        assert (float(loss(*inputs).asnumpy()) == float(loss(*other).asnumpy())) == is_same


def test_trained_embeddings_are_written_into_the_token_tables(workshop: Workshop) -> None:
    model = stable_diffusion.build(workshop.config().model)
    loading.load_weights(model, workshop.folder / "weights.ckpt", workshop.config().model)
    batches = diffusion.Batches(
        np.random.default_rng(0).standard_normal((3, 4, 8, 8)).astype(np.float32), 0, model.config
    )
    embeddings = diffusion.embedding_parameters(len(batches.known), model.config, 0)
    loss, batch = diffusion.Loss(model, embeddings), list(batches.batch(range(4)))
    learned = loss(*batch).asnumpy()
    for k in (6, 7):  # the ids that the published tokenizer gives
        ids = batch[k].asnumpy()
        batch[k] = Tensor(
            np.where(ids < VOCAB_SIZE, ids, batches.known[np.maximum(ids - VOCAB_SIZE, 0)]).astype(np.int32)
        )
    assert relative_error(loss(*batch).asnumpy(), learned) > 1e-4
    diffusion.fill_token_tables(model, batches.known, embeddings, 0)
    assert relative_error(loss(*batch).asnumpy(), learned) < 1e-6


def train_miniature(workshop: Workshop, state: Path, ms_mode: int, *launcher: str) -> dict[str, np.ndarray]:
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
    ended = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return load_file(state / "model.safetensors")


def test_whole_training_resumes_and_is_the_same_in_graph_mode_on_two_ranks(workshop: Workshop, tmp_path: Path) -> None:
    whole = train_miniature(workshop, tmp_path / "whole", 1)
    model = stable_diffusion.build(workshop.config().model)
    loading.load_weights(model, tmp_path / "whole" / "model.safetensors", workshop.config().model)
    shared = train_miniature(workshop, tmp_path / "shared", 0, *MPIRUN)
    assert list(shared) == list(whole)
    worst = max(np.abs(shared[name].astype(np.float32) - whole[name].astype(np.float32)).max() for name in whole)
    assert worst < 0.02  # float16 files; Adam turns the last bits of tiny gradients into steps
    again = train_miniature(workshop, tmp_path / "whole", 1)
    assert all(np.array_equal(again[name], whole[name]) for name in whole)


def test_loss_curves_are_written_and_plotted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = {"autoencoder": [float(k) for k in range(25, 0, -1)], "diffusion": [4.0] * 10}
    train.write_curves(losses, tmp_path / "curves.json")
    written = json.loads((tmp_path / "curves.json").read_text())
    assert written == {"every": 10, "autoencoder": [20.5, 10.5, 3.0], "diffusion": [4.0]}
    target = tmp_path / "curves.png"
    source = str(tmp_path / "curves.json")
    monkeypatch.setattr(sys, "argv", ["loss_curves.py", "--source", source, "--target", str(target)])
    loss_curves.main()
    with Image.open(target) as image:
        assert np.asarray(image.convert("L")).std() > 10


def test_every_used_weight_has_a_gradient(workshop: Workshop) -> None:
    model = stable_diffusion.build(workshop.config().model)
    loading.load_weights(model, workshop.folder / "weights.ckpt", workshop.config().model)
    batches = diffusion.Batches(
        np.random.default_rng(0).standard_normal((3, 4, 8, 8)).astype(np.float32), 0, model.config
    )
    embeddings = diffusion.embedding_parameters(len(batches.known), model.config, 0)
    parameters = [*diffusion.trainable_parameters(model), *embeddings]
    one = Trainer(diffusion.Loss(model, embeddings), parameters, Hyperparameters(updates=1, batch=8, rate=1e-3), ONE)
    _, gradients = one.gradient(*batches.batch(range(8)))
    still = {p.name for p, g in zip(parameters, gradients, strict=True) if not np.abs(g.asnumpy()).max()}
    last = f"text_model.encoder.layers.{model.config.text_encoder_1.layers - 1}."
    assert all(last in name or "final_layer_norm" in name for name in still)  # published, never read by SDXL
    assert len(still) == 18
