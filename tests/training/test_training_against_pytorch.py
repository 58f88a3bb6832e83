"""Batches, training step and AdamW against PyTorch: ten updates with the same samples and noise."""

from __future__ import annotations

import dataclasses

import mindspore as ms
import numpy as np
import pytest

from gm.config import ConceptConfig, Config, DataConfig, LossConfig, TrainingConfig, with_concepts
from gm.data.latent_cache import LatentCache
from gm.runtime import rng
from gm.runtime.backend import Backend, compile_cell
from gm.text.tokenizer import END, Tokenizer, pool_positions
from gm.training import concept_data, lr_schedule
from gm.training.batch_sampler import PromptChoice, Sample, samples
from gm.training.batches import BatchLoader
from gm.training.concept_data import TrainingConcept
from gm.training.optimizer import create_train_state
from gm.training.setup import TrainingSetup
from gm.training.train_step import TrainStep
from gm.training.trainer import Trainer
from tests.reference.inputs import Batch, Prompts, normal, relative_error
from tests.reference.loops import scheduler

pytestmark = pytest.mark.reference
ENCODERS = ("clip_l", "clip_g")
UPDATES, ACCUMULATION, BATCH = 10, 4, 2
LATENT = (8, 8, 6)  # channels, height, width
PROMPTS = ("a photo of a <cat> on a table", "<cat>", "an extremely long and detailed painting of one small <cat>")


@pytest.fixture(scope="module")
def config(smallest):
    # Limits and sizes at which nothing is idle: gradients of about 0.1 are clipped in some updates, an epsilon of
    # 1e-4 is of their size, and the learning rate changes.
    training = TrainingConfig(
        seed=5,
        total_step=UPDATES * ACCUMULATION,
        train_batch_size=BATCH,
        gradient_accumulation_steps=ACCUMULATION,
        learning_rate=2e-3,
        lr_scheduler="cosine",
        lr_warmup_steps=2,
        adam_beta2=0.99,
        adam_epsilon=1e-4,
        weight_decay=0.1,
        max_grad_norm=0.07,
    )
    return Config(
        model=smallest.config,
        concept=ConceptConfig(placeholder_token="<cat>", num_vectors=2),
        data=DataConfig(random_flip=True),
        training=training,
    )


def setup_of(config):
    """Return a setup whose three images are only latents."""
    concept = TrainingConcept(concept_data.concept_configs(config)[0], "cat", slice(0, 2), [None] * 3, PROMPTS)
    return TrainingSetup(config, [concept], [], tokenizer(config))


@pytest.fixture(scope="module")
def loader(config):
    training_setup = setup_of(config)
    mean, log_variance = normal(80, 3, 2, *LATENT) / 0.3, normal(81, 3, 2, *LATENT) - 1.0
    sizes = np.random.default_rng(82).integers(0, 1500, (3, 2, 6)).astype(np.float32)
    return BatchLoader(training_setup, LatentCache(mean, log_variance, sizes, config.model.vae.scale_factor))


@pytest.fixture(scope="module")
def trained(smallest, config, loader):
    """Return the training of PyTorch with the same samples and noise."""
    from tests.reference.loops import torch_training

    training = config.training
    rates = [lr_schedule.learning_rates(k, UPDATES, training, ENCODERS)[0] for k in range(UPDATES)]
    return torch_training(
        smallest.reference,
        *initial_vectors(config),
        [batch(config, loader, step) for step in range(training.total_step)],
        accumulation=ACCUMULATION,
        learning_rates=rates,
        betas=(training.adam_beta1, training.adam_beta2),
        eps=training.adam_epsilon,
        max_grad_norm=training.max_grad_norm,
        weight_decay=training.weight_decay,
    )


def create_state(config):
    return create_train_state(dict(zip(ENCODERS, initial_vectors(config), strict=True)))


def initial_vectors(config):
    model = config.model
    return 0.02 * normal(83, 2, model.text_encoder_1.width), 0.02 * normal(84, 2, model.text_encoder_2.width)


def batch(config, loader, step):
    """Return what `step` shows, put together without `BatchLoader`."""
    training, latents = config.training, loader.latents
    shown = samples(
        step,
        seed=training.seed,
        batch=BATCH,
        rank=0,
        world=1,
        buckets=[range(3)],
        prompts=[PromptChoice(range(len(PROMPTS)))] * 3,
        timesteps=(0, config.model.schedule.timesteps),
        flip=True,
    )
    image, variant = [s.image for s in shown], [int(s.flipped) for s in shown]
    noises = [
        np.stack([rng.normal(LATENT, training.seed, f"training {what}", s.index) for s in shown])
        for what in ("posterior", "noise")
    ]
    words = tokenizer(config)
    texts = [PROMPTS[s.prompt] for s in shown]
    ids_1, ids_2 = words(texts, padding=END), words(texts, padding=0)
    prompts = Prompts(
        ids_1,
        ids_2,
        pool_positions(ids_2, "end_of_text"),
        *initial_vectors(config),
        latents.size_conditioning[image, variant],
    )
    times = np.array([s.timestep for s in shown], np.int32)
    return Batch(latents.mean[image, variant], latents.log_variance[image, variant], *noises, times, prompts)


@pytest.mark.parametrize("graph", [False, pytest.param(True, marks=pytest.mark.graph)], ids=["pynative", "graph"])
def test_ten_updates_equal_pytorch(smallest, config, loader, trained, graph):
    state = create_state(config)
    backend = Backend("CPU", graph, ms.float32)
    losses, norms, vectors = [], [], []
    for result in Trainer(smallest.model, setup_of(config), backend, state, loader).steps():
        assert result.finite
        losses.append(result.loss)
        if result.gradient_norm is not None:
            norms.append(result.gradient_norm)
            vectors.append(list(state.vector_arrays().values()))
    assert min(trained.norms) < config.training.max_grad_norm < max(trained.norms)
    np.testing.assert_allclose(losses, trained.losses, rtol=2e-5)
    np.testing.assert_allclose(norms, trained.norms, rtol=1e-4)
    for number, expected in enumerate((trained.clip_l, trained.clip_g)):
        start, ours = initial_vectors(config)[number], np.stack([each[number] for each in vectors])
        assert relative_error(ours, expected) < 1e-4
        assert relative_error(ours - start, expected - start) < 1e-4


@pytest.mark.parametrize("graph", [False, pytest.param(True, marks=pytest.mark.graph)], ids=["pynative", "graph"])
def test_loss_with_every_option_equals_pytorch(smallest, config, loader, graph):
    """Pseudo-Huber, min-SNR weights, offset noise, a range and a bias of levels: loss and gradient beside PyTorch's."""
    import torch

    loss = LossConfig("huber", 0.3, 5.0, 0.2, 100, 800, -0.5)
    options = dataclasses.replace(config, loss=loss)
    model, training = smallest.reference, options.training
    training_setup = setup_of(options)
    shown = BatchLoader(training_setup, loader.latents).batch(3)
    state = create_state(config)
    found = compile_cell(TrainStep(smallest.model, state, False, loss), graph)(*shown.inputs)
    times = shown.timesteps.asnumpy().astype(int)
    assert ((times >= 100) & (times <= 800)).all()
    # The same, from samples and noise alone.
    samples_ = samples(
        3,
        seed=training.seed,
        batch=BATCH,
        rank=0,
        world=1,
        buckets=[range(3)],
        prompts=[PromptChoice(range(3))] * 3,
        timesteps=(100, 801),
        bias=-0.5,
        flip=True,
    )
    plain = BatchLoader(dataclasses.replace(training_setup, config=config), loader.latents).assemble(
        samples_, "training"
    )
    offsets = [rng.normal((LATENT[0], 1, 1), training.seed, "training noise offset", s.index) for s in samples_]
    noise = plain.target.asnumpy() + np.float32(0.2) * np.stack(offsets)
    np.testing.assert_allclose(shown.target.asnumpy(), noise, rtol=1e-6)
    kept = torch.tensor(scheduler(config.model).alphas_cumprod[times].numpy()).reshape(-1, 1, 1, 1)
    shift = (1.0 - kept).sqrt().numpy() * np.float32(0.2) * np.stack(offsets)
    np.testing.assert_allclose(shown.x.asnumpy(), plain.x.asnumpy() + shift, rtol=1e-4, atol=1e-5)
    both = [torch.from_numpy(r.copy()).requires_grad_() for r in initial_vectors(config)]
    ids = [torch.from_numpy(each.asnumpy()) for each in (*shown.ids, shown.pool_position)]
    context, pooled = model.condition(*ids, *both)
    epsilon = model.epsilon(shown.x.asnumpy(), times, context, pooled, shown.sizes.asnumpy())
    error = epsilon - torch.from_numpy(noise)
    snr = kept / (1.0 - kept)
    weight = torch.minimum(snr, torch.tensor(5.0)) / snr
    expected = (2 * 0.3 * ((error**2 + 0.3**2).sqrt() - 0.3) * weight).mean()
    expected.backward()
    assert float(found[0]) == pytest.approx(expected.item(), rel=1e-4)
    for ours, theirs in zip(state.gradient_sums, both, strict=True):
        assert relative_error(ours.asnumpy(), theirs.grad.numpy()) < 1e-4


@pytest.mark.parametrize("graph", [False, pytest.param(True, marks=pytest.mark.graph)], ids=["pynative", "graph"])
def test_negative_concept_is_trained_with_the_prediction_of_sampling(smallest, config, loader, graph):
    """Loss and both gradients, of n + 2.5 (p - n), beside PyTorch's."""
    import torch

    negative = {"placeholder_token": "<bad>", "num_vectors": 3, "negative": True}
    options = with_concepts(dataclasses.replace(config, loss=LossConfig(negative_guidance=2.5)), [{}, negative])
    known = tokenizer(config)
    known.add_placeholder("<bad>", 3)
    training_setup = setup_of(options)
    bad = TrainingConcept(options.concepts[1], "bad", slice(2, 5), [], ())
    shown_by = BatchLoader(
        dataclasses.replace(training_setup, concepts=[*training_setup.concepts, bad], tokenizer=known), loader.latents
    )
    shown = shown_by.batch(1)
    widths = config.model.text_encoder_1.width, config.model.text_encoder_2.width
    start = [0.05 * normal(90 + k, 5, width) for k, width in enumerate(widths)]
    state = create_train_state(dict(zip(ENCODERS, start, strict=True)))
    step = TrainStep(smallest.model, state, False, options.loss, shown_by.negative)
    found = compile_cell(step, graph)(*shown.inputs)
    model, both = smallest.reference, [torch.from_numpy(r.copy()).requires_grad_() for r in start]
    predictions = []
    bad_ids = known(["<bad>"], padding=END), known(["<bad>"], padding=0)
    assert bad_ids[0][0, :5].tolist() == [49406, 49410, 49411, 49412, 49407]
    times, sizes = shown.timesteps.asnumpy().astype(int), shown.sizes.asnumpy()
    for ids in (
        (*(torch.from_numpy(i).expand(BATCH, -1) for i in bad_ids), torch.tensor([4] * BATCH)),
        tuple(torch.from_numpy(each.asnumpy()) for each in (*shown.ids, shown.pool_position)),
    ):
        predictions.append(model.epsilon(shown.x.asnumpy(), times, *model.condition(*ids, *both), sizes))
    away, towards = predictions
    expected = ((away + 2.5 * (towards - away) - torch.from_numpy(shown.target.asnumpy())) ** 2).mean()
    expected.backward()
    assert float(found[0]) == pytest.approx(expected.item(), rel=1e-4)
    for ours, theirs in zip(state.gradient_sums, both, strict=True):
        gradient = theirs.grad.numpy()
        assert (np.abs(gradient).max(axis=1) > 1e-6).all()  # of every vector, those of both concepts
        assert relative_error(ours.asnumpy(), gradient) < 1e-4


@pytest.mark.parametrize("graph", [False, pytest.param(True, marks=pytest.mark.graph)], ids=["pynative", "graph"])
def test_prompts_of_several_chunks_equal_pytorch(smallest, config, loader, graph):
    """Loss and both gradients; PyTorch encodes chunk by chunk, and pools the first."""
    import torch

    prompts = ("a <cat> " + "word " * 80 + "<cat> on a table", "<cat>", "one " * 74 + "<cat>")
    training_setup = setup_of(config)
    concept = dataclasses.replace(training_setup.concepts[0], prompts=prompts)
    shown_by = BatchLoader(dataclasses.replace(training_setup, concepts=[concept]), loader.latents)
    samples_ = [Sample(image, False, image, 400 + image, image) for image in range(3)]
    shown = shown_by.assemble(samples_, "training")
    state = create_state(config)
    found = compile_cell(TrainStep(smallest.model, state), graph)(*shown.inputs)
    word, one = tokenizer(config).encode("word one")
    a, on, table, cat = *tokenizer(config).encode("a on table"), [49408, 49409]
    chunks = (
        ([a, *cat, *[word] * 72], [*[word] * 8, *cat, on, a, table]),
        (cat, []),
        ([one] * 74, cat),  # both vectors move
    )
    model, both = smallest.reference, [torch.from_numpy(r.copy()).requires_grad_() for r in initial_vectors(config)]
    encoded = []
    for column in zip(*chunks, strict=True):
        ids = [np.array([[49406, *c, 49407, *[p] * (75 - len(c))] for c in column], np.int32) for p in (49407, 0)]
        encoded.append(model.condition(*ids, np.array([len(c) + 1 for c in column]), *both))
    (first, pooled), (second, _) = encoded
    times = shown.timesteps.asnumpy().astype(int)
    context = torch.cat((first, second), dim=1)
    epsilon = model.epsilon(shown.x.asnumpy(), times, context, pooled, shown.sizes.asnumpy())
    expected = ((epsilon - torch.from_numpy(shown.target.asnumpy())) ** 2).mean()
    expected.backward()
    assert float(found[0]) == pytest.approx(expected.item(), rel=1e-4)
    for ours, theirs in zip(state.gradient_sums, both, strict=True):
        assert relative_error(ours.asnumpy(), theirs.grad.numpy()) < 1e-4


def tokenizer(config):
    tokenizer_ = Tokenizer(config.model.text_encoder_1.context_length)
    tokenizer_.add_placeholder("<cat>", 2)
    return tokenizer_
