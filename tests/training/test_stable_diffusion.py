"""Training of Stable Diffusion 1 and 2, which have one text encoder, no pooled text and no size conditioning."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest

from gm.config import ConceptConfig, Config, DataConfig, RunConfig, TrainingConfig, family_options
from gm.config.model import ModelConfig
from gm.data.latent_cache import LatentCache
from gm.embeddings import io as embedding_io
from gm.embeddings.embedding import NO_POOLING, Embedding, combine
from gm.errors import UserError
from gm.runtime import rng
from gm.runtime.backend import Backend
from gm.text.tokenizer import END, Tokenizer
from gm.training import concept_data, embedding_files, learned_embeds, lr_schedule, option_checks
from gm.training.batch_sampler import PromptChoice, samples
from gm.training.batches import BatchLoader
from gm.training.concept_data import TrainingConcept
from gm.training.initial_vectors import initial_vectors
from gm.training.optimizer import create_train_state
from gm.training.setup import TrainingSetup
from gm.training.trainer import Trainer
from tests.reference.configs import LIKE_BASE, LIKE_SD1, LIKE_SD2
from tests.reference.inputs import Batch, Prompts, normal, relative_error

UPDATES = 10
LATENT = (4, 8, 8)  # channels, height, width
PROMPTS = ("a photo of a <cat> on a table", "<cat>")


def config_of(model: ModelConfig, **training: object) -> Config:
    options = {"seed": 5, "total_step": UPDATES, "learning_rate": 2e-3, "lr_scheduler": "cosine"} | training
    return Config(
        model=model,
        concept=ConceptConfig(placeholder_token="<cat>", num_vectors=2),
        data=DataConfig(random_flip=True),
        training=TrainingConfig(adam_epsilon=1e-6, weight_decay=0.1, train_batch_size=2, **options),
    )


def setup_of(config: Config) -> TrainingSetup:
    """Return a setup whose three images are only latents."""
    tokenizer = Tokenizer(config.model.context_length)
    tokenizer.add_placeholder("<cat>", 2)
    concept = TrainingConcept(concept_data.concept_configs(config)[0], "cat", slice(0, 2), [None] * 3, PROMPTS)
    return TrainingSetup(config, [concept], [], tokenizer)


def loader_of(setup: TrainingSetup) -> BatchLoader:
    mean, log_variance = normal(80, 3, 2, *LATENT) / 0.3, normal(81, 3, 2, *LATENT) - 1.0
    sizes = np.zeros((3, 2, 6), np.float32)
    return BatchLoader(setup, LatentCache(mean, log_variance, sizes, setup.config.model.vae.scale_factor))


def batch_for_torch(config: Config, loader: BatchLoader, step: int) -> Batch:
    """Return the batch of `step`, put together without `BatchLoader`."""
    seed, latents = config.training.seed, loader.latents
    shown = samples(
        step,
        seed=seed,
        batch=2,
        rank=0,
        world=1,
        buckets=[range(3)],
        prompts=[PromptChoice(range(2))] * 3,
        timesteps=(0, config.model.schedule.timesteps),
        flip=True,
    )
    image, variant = [s.image for s in shown], [int(s.flipped) for s in shown]
    noises = [
        np.stack([rng.normal(LATENT, seed, f"training {what}", s.index) for s in shown])
        for what in ("posterior", "noise")
    ]
    texts = [PROMPTS[s.prompt] for s in shown]
    tokenizer = setup_of(config).tokenizer
    width = config.model.text_encoder_1.width
    prompts = Prompts(
        tokenizer(texts, padding=END),
        tokenizer(texts, padding=0),
        np.zeros(2, np.int32),
        0.02 * normal(83, 2, width),
        np.zeros((2, 1), np.float32),
        np.zeros((2, 6), np.float32),
    )
    timesteps = np.array([s.timestep for s in shown], np.int32)
    return Batch(latents.mean[image, variant], latents.log_variance[image, variant], *noises, timesteps, prompts)


@pytest.mark.parametrize("name", ["like-sd1", "like-sd2"])
def test_ten_updates_equal_pytorch(name, cases):
    from tests.reference.loops import torch_training

    case = cases(name)
    config = config_of(case.config)
    training = config.training
    loader = loader_of(setup_of(config))
    (encoder,) = case.config.text_encoders
    start = 0.02 * normal(83, 2, case.config.text_encoder_1.width)
    expected = torch_training(
        case.reference,
        start,
        np.zeros((2, 1), np.float32),
        [batch_for_torch(config, loader, step) for step in range(UPDATES)],
        accumulation=1,
        learning_rates=[lr_schedule.learning_rates(k, UPDATES, training, [encoder])[0] for k in range(UPDATES)],
        eps=training.adam_epsilon,
        weight_decay=training.weight_decay,
    )
    state = create_train_state({encoder: start})
    losses, vectors = [], []
    for result in Trainer(case.model, setup_of(config), Backend("CPU", False, ms.float32), state, loader).steps():
        losses.append(result.loss)
        vectors.append(state.vector_arrays()[encoder])
    np.testing.assert_allclose(losses, expected.losses, rtol=2e-5)
    assert relative_error(np.stack(vectors), expected.clip_l) < 1e-4
    assert relative_error(np.stack(vectors) - start, expected.clip_l - start) < 1e-4


@pytest.mark.parametrize(("model", "padding"), [(LIKE_SD1, END), (LIKE_SD2, 0)])
def test_a_batch_has_the_ids_of_the_only_encoder_with_its_padding(model: ModelConfig, padding: int) -> None:
    batch = loader_of(setup_of(config_of(model))).batch(0)
    (ids,) = batch.ids
    assert ids.shape == (2, 77)
    assert set(ids.asnumpy()[:, -1].tolist()) == {padding}


def test_random_initial_vectors_have_the_width_of_the_only_encoder(cases) -> None:
    for name in ("like-sd1", "like-sd2"):
        case = cases(name)
        ((encoder, vectors),) = initial_vectors(case.model, setup_of(config_of(case.config))).items()
        assert encoder in case.config.text_encoders
        assert vectors.shape == (2, case.config.text_encoder_1.width)


@pytest.mark.parametrize(
    ("model", "option", "has"),
    [
        (LIKE_SD1, "learning_rate_clip_g", r"like-sd1 \(Stable Diffusion 1\) has clip_l"),
        (LIKE_SD1, "learning_rate_clip_h", r"like-sd1 \(Stable Diffusion 1\) has clip_l"),
        (LIKE_SD2, "learning_rate_clip_l", r"like-sd2 \(Stable Diffusion 2\) has clip_h"),
        (LIKE_BASE, "learning_rate_clip_h", r"like-base \(SDXL\) has clip_l and clip_g"),
    ],
)
def test_the_learning_rate_of_a_missing_encoder_is_refused(model: ModelConfig, option: str, has: str) -> None:
    with pytest.raises(UserError, match=f"--{option} 0.01 is for another model; {has}: leave it out"):
        family_options.check_training(model, TrainingConfig(**{option: 0.01}))


def test_the_learning_rate_of_the_only_encoder_replaces_the_general_one() -> None:
    config = config_of(LIKE_SD2, learning_rate_clip_h=0.5)
    family_options.check_training(config.model, config.training)
    assert lr_schedule.peak_learning_rates(config.training, ["clip_h"]) == (0.5,)
    sentences = list(option_checks.ineffective_options(config, UPDATES))
    assert "--learning_rate 0.002 has no effect: --learning_rate_clip_h replaces it" in sentences


@pytest.mark.parametrize("rule", ["end_of_text", "argmax"])
def test_a_pooling_rule_is_not_spoken_of(rule: str) -> None:
    config = dataclasses.replace(config_of(LIKE_SD1), run=RunConfig(pooling=rule))
    assert not any("pooling" in sentence for sentence in option_checks.ineffective_options(config, UPDATES))


@pytest.mark.parametrize(
    ("model", "architecture"),
    [
        (LIKE_SD1, "stable-diffusion-v1"),
        (LIKE_SD2, "stable-diffusion-v2-512"),
        (
            dataclasses.replace(LIKE_SD2, schedule=dataclasses.replace(LIKE_SD2.schedule, prediction="v_prediction")),
            "stable-diffusion-v2-768-v",
        ),
    ],
)
def test_the_embedding_files_of_a_run_load_in_their_family(
    tmp_path: Path, model: ModelConfig, architecture: str
) -> None:
    config = config_of(model)
    (encoder,) = model.text_encoders
    vectors = {encoder: normal(90, 2, model.text_encoder_1.width)}
    setup = setup_of(config)
    (embedding,) = embedding_files.embeddings(setup, vectors, "f" * 16, 3)
    assert embedding.pooling == NO_POOLING
    embedding_files.save(tmp_path, setup, [embedding], 3)
    for suffix in (".ckpt", ".safetensors"):
        path = tmp_path / f"{model.version}_3_ti{suffix}"
        again = embedding_io.load(path, model.family)
        assert (again.placeholder_token, again.pooling) == ("<cat>", NO_POOLING)
        assert again.metadata["modelspec.architecture"] == f"{architecture}/textual-inversion"
        np.testing.assert_array_equal(again.vectors[encoder], vectors[encoder])
        np.testing.assert_array_equal(combine([again], model).vectors[encoder], vectors[encoder])
        with pytest.raises(UserError, match="was trained on another model"):
            combine([embedding_io.load(path, None)], LIKE_BASE)


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("encoder", ["clip_l", "clip_h"])
def test_kohyas_file_has_the_vectors_of_the_only_encoder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, encoder: str, suffix: str
) -> None:
    vectors = np.ones((2, 8), np.float32)
    learned_embeds.save_as(tmp_path / f"cat.{suffix}", [Embedding("<cat>", {encoder: vectors}, NO_POOLING)])
    file = embedding_io.read_file(tmp_path / f"cat.{suffix}")
    assert file.format == "kohya"
    assert [next(iter(each.values())).shape for each in file.vectors.values()] == [(2, 8)]
    assert "pooling" not in caplog.text


def test_kohyas_file_holds_one_concept() -> None:
    learned_embeds.check_output_name("cat.pt", 1)
    learned_embeds.check_output_name(None, 2)
    with pytest.raises(UserError, match=r"--output_name cat\.pt holds one embedding, and there are 2 concepts"):
        learned_embeds.check_output_name("cat.pt", 2)
