"""A model of v with zero terminal SNR: converted, trained for ten updates and sampled beside PyTorch and diffusers."""

from __future__ import annotations

import dataclasses
from typing import Any

import mindspore as ms
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gm.checkpoints import loading
from gm.config import ConceptConfig, Config, LossConfig, SamplingConfig, TrainingConfig
from gm.config.model import ScheduleConfig
from gm.data.latent_cache import LatentCache
from gm.diffusion import losses
from gm.embeddings.embedding import Embedding, combine
from gm.models import stable_diffusion
from gm.runtime.backend import Backend
from gm.sampling.pipeline import Pipeline
from gm.text.tokenizer import END, Tokenizer, pool_positions
from gm.training import concept_data
from gm.training.batch_sampler import Sample
from gm.training.batches import BatchLoader
from gm.training.concept_data import TrainingConcept
from gm.training.optimizer import create_train_state
from gm.training.setup import TrainingSetup
from gm.training.trainer import Trainer
from gm.training.validation import ValidationLoss
from tests.reference.case import Case
from tests.reference.inputs import Batch, Prompts, normal, relative_error
from tests.sampling.generation import PYNATIVE, image_request

pytestmark = pytest.mark.reference

UPDATES, BATCH, RATE = 10, 2, 2e-3
LATENT = (8, 8, 6)
PROMPT = "a photo of a <cat> on a table"
SCHEDULE = ScheduleConfig(prediction="v_prediction", rescale_betas_zero_snr=True)
TIMESTEPS = [999, *np.random.default_rng(8).integers(0, 1000, UPDATES * BATCH - 1).tolist()]
GRAPH = pytest.mark.parametrize(
    "graph", [False, pytest.param(True, marks=pytest.mark.graph)], ids=["pynative", "graph"]
)
MODES = {False: PYNATIVE, True: Backend("CPU", True, ms.float32)}


@dataclasses.dataclass
class VCase:
    """The smallest model as one that predicts v: our `model`, loaded from the converted file, and the `reference`."""

    model: stable_diffusion.StableDiffusion
    reference: Any

    @property
    def config(self) -> Any:
        return self.model.config


@pytest.fixture(scope="module")
def case(smallest: Case, tmp_path_factory: pytest.TempPathFactory) -> VCase:
    folder = tmp_path_factory.mktemp("v_prediction")
    markers = {"v_pred": np.zeros(0, np.float32), "ztsnr": np.zeros(0, np.float32)}
    save_file(load_file(smallest.path) | markers, folder / "v.safetensors")
    config = dataclasses.replace(smallest.config, schedule=SCHEDULE)
    loading.convert(folder / "v.safetensors", folder / "v.ckpt", config, "float32")
    model = stable_diffusion.build(config)
    loading.load_weights(model, folder / "v.ckpt", config)
    return VCase(model, dataclasses.replace(smallest.reference, config=config))


@pytest.fixture(scope="module")
def loader(case: VCase) -> BatchLoader:
    training = TrainingConfig(seed=5, total_step=UPDATES, train_batch_size=BATCH, learning_rate=RATE, max_grad_norm=0.0)
    config = Config(
        model=case.config, concept=ConceptConfig(placeholder_token="<cat>", num_vectors=2), training=training
    )
    concept = TrainingConcept(concept_data.concept_configs(config)[0], "cat", slice(0, 2), [None] * 3, (PROMPT,))
    setup = TrainingSetup(config, [concept], [], tokenizer(case))
    mean, log_variance = normal(80, 3, 1, *LATENT) / 0.3, normal(81, 3, 1, *LATENT) - 1.0
    sizes = np.random.default_rng(82).integers(0, 1500, (3, 1, 6)).astype(np.float32)
    made = Fixed(setup, LatentCache(mean, log_variance, sizes, config.model.vae.scale_factor))
    made.setup = setup
    return made


class Fixed(BatchLoader):
    """Batches of the timesteps `TIMESTEPS`, the last of the model among them."""

    setup: TrainingSetup

    def batch(self, step: int) -> Any:
        return self.assemble(samples(step), "training")


def samples(step: int) -> list[Sample]:
    numbers = range(step * BATCH, (step + 1) * BATCH)
    return [Sample(number % 3, False, 0, TIMESTEPS[number], number) for number in numbers]


def tokenizer(case: VCase) -> Tokenizer:
    made = Tokenizer(case.config.text_encoder_1.context_length)
    made.add_placeholder("<cat>", 2)
    return made


def initial_vectors(case: VCase) -> dict[str, np.ndarray]:
    return {name: 0.02 * normal(83 + len(name), 2, each.width) for name, each in case.config.text_encoders.items()}


def prompts(case: VCase, count: int, sizes: np.ndarray) -> Prompts:
    words = tokenizer(case)
    ids_1, ids_2 = words([PROMPT] * count, padding=END), words([PROMPT] * count, padding=0)
    return Prompts(ids_1, ids_2, pool_positions(ids_2, "end_of_text"), *initial_vectors(case).values(), sizes)


def torch_batch(case: VCase, loader: BatchLoader, shown: list[Sample], stream: str) -> Batch:
    """Return the samples put together without `BatchLoader`."""
    from gm.runtime import rng

    images = [sample.image for sample in shown]
    noises = [
        np.stack([rng.normal(LATENT, 5, f"{stream} {what}", sample.index) for sample in shown])
        for what in ("posterior", "noise")
    ]
    cache = loader.latents
    sizes = cache.size_conditioning[images, 0]
    times = np.array([sample.timestep for sample in shown], np.int32)
    mean, log_variance = np.stack(cache.mean)[images, 0], np.stack(cache.log_variance)[images, 0]
    return Batch(mean, log_variance, *noises, times, prompts(case, len(shown), sizes))


@GRAPH
def test_ten_updates_equal_pytorch(case: VCase, loader: Fixed, graph: bool) -> None:
    from tests.reference.loops import torch_training

    theirs = torch_training(
        case.reference,
        *initial_vectors(case).values(),
        [torch_batch(case, loader, samples(step), "training") for step in range(UPDATES)],
        accumulation=1,
        learning_rates=[RATE] * UPDATES,
        max_grad_norm=0.0,
    )
    state = create_train_state(initial_vectors(case))
    results = list(Trainer(case.model, loader.setup, MODES[graph], state, loader).steps())
    np.testing.assert_allclose([result.loss for result in results], theirs.losses, rtol=2e-5)
    for ours, expected in zip(state.vector_arrays().values(), (theirs.clip_l[-1], theirs.clip_g[-1]), strict=True):
        assert relative_error(ours, expected) < 1e-4


def test_the_validation_loss_is_the_error_of_v(case: VCase, loader: Fixed) -> None:
    """Without the weights of training, at timesteps of the whole range."""
    from tests.reference.loops import diffusion_loss

    loss = LossConfig(min_snr_gamma=5.0)
    setup = dataclasses.replace(loader.setup, config=dataclasses.replace(loader.setup.config, loss=loss))
    validation = ValidationLoss(case.model, BatchLoader(setup, loader.latents), 3, PYNATIVE)
    found = validation.losses(initial_vectors(case))
    for k, timestep in enumerate((166, 500, 833)):
        held_out = torch_batch(case, loader, [Sample(k, False, 0, timestep, k)], "held-out")
        expected = diffusion_loss(case.reference, *initial_vectors(case).values(), held_out)
        assert found[k] == pytest.approx(expected.item(), rel=1e-4)


def test_min_snr_weights_are_those_of_v(loader: Fixed) -> None:
    config = dataclasses.replace(loader.setup.config, loss=LossConfig(min_snr_gamma=5.0))
    weighted = BatchLoader(dataclasses.replace(loader.setup, config=config), loader.latents).assemble(
        samples(0), "training"
    )
    expected = losses.min_snr_weights(loader.sigmas, 5.0, "v_prediction")[TIMESTEPS[:BATCH]]
    np.testing.assert_allclose(weighted.loss_weight.asnumpy()[:, 0, 0, 0], expected, rtol=1e-6)


SCHEDULERS = {
    "euler": ("EulerDiscreteScheduler", {}),
    "ddim": ("DDIMScheduler", {"set_alpha_to_one": False, "clip_sample": False}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {"final_sigmas_type": "zero"}),
}


@pytest.mark.parametrize(
    ("sampler", "graph"),
    [*((name, False) for name in SCHEDULERS), pytest.param("ddim", True, marks=pytest.mark.graph)],
)
def test_twenty_steps_from_zero_terminal_snr_equal_diffusers(case: VCase, sampler: str, graph: bool) -> None:
    import diffusers

    from tests.reference.loops import beta_options, torch_sampling

    embedding = Embedding("<cat>", initial_vectors(case))
    embeddings = combine([embedding], case.config)
    sampling = SamplingConfig(
        sample_step=20, sampler=sampler, schedule="trailing", guider="rescaled", height=16, width=24
    )
    request = image_request(PROMPT, 3, case.config, embeddings, sampling)
    *_, last = Pipeline(case.model, MODES[graph], "end_of_text").generate([request], embeddings, sampling)
    kind, options = SCHEDULERS[sampler]
    scheduler = getattr(diffusers, kind)(**beta_options(case.config), timestep_spacing="trailing", **options)
    scheduler.set_timesteps(20)
    sizes = np.asarray([request.resolution.size_conditioning], np.float32)
    noise = request.initial_noise(case.config.vae)[None]
    expected = torch_sampling(
        case.reference, scheduler, noise, prompts(case, 1, sizes), guidance_scale=5.0, rescale=0.7
    )
    assert relative_error(last.latents, expected) < 1e-4
