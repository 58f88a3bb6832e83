"""Images: which options change them, and which must not."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import pytest

from gm.checkpoints import loading
from gm.config import SamplingConfig
from gm.diffusion import samplers
from gm.embeddings.embedding import combine
from gm.models import stable_diffusion
from gm.runtime.backend import Backend
from gm.sampling.pipeline import Pipeline
from tests.project import Workshop
from tests.reference.inputs import relative_error
from tests.sampling.generation import PYNATIVE, generate, image_request, toy

LONG = "a <toy>" + " and more" * 40


def test_images_and_progress(pipeline: Pipeline) -> None:
    generated = generate(pipeline, *(("a <toy>", seed) for seed in range(3)), batch_size=2)
    assert generated.images.shape == (3, 16, 16, 3)
    assert generated.images.dtype == np.uint8
    assert generated.latents.shape == (3, 4, 8, 8)
    done = [(step.done, len(step.images)) for step in generated.progress]
    assert done == [(1, 0), (2, 0), (3, 2), (4, 0), (5, 0), (6, 1)]
    assert {step.total for step in generated.progress} == {6}


def test_half_precision_weights_in_memory_give_the_same_image(workshop: Workshop, tmp_path: Path) -> None:
    config, latents = workshop.config(), []
    loading.convert(config.run.weight, tmp_path / "half.safetensors", config.model, "float16")
    for keep_half_above in (math.inf, 300):
        model = stable_diffusion.build(config.model)
        loading.load_weights(model, tmp_path / "half.safetensors", config.model, keep_half_above)
        latents.append(generate(Pipeline(model, PYNATIVE, "end_of_text"), ("a <toy>", 7)).latents)
    assert model.unet.time_embed[0].weight.dtype == ms.float16
    assert relative_error(latents[1], latents[0]) < 1e-6


def test_an_image_does_not_depend_on_its_batch(pipeline: Pipeline) -> None:
    prompts = [("a <toy>", 7), ("two <toy>", 8), ("a <toy>", 9)]
    together, alone, padded = (generate(pipeline, *prompts, batch_size=size).latents for size in (3, 1, 2))
    assert relative_error(together, alone) < 1e-5
    assert relative_error(padded, alone) < 1e-5
    assert relative_error(generate(pipeline, prompts[1]).latents, alone[1:2]) < 1e-5


def test_every_option_of_an_image_changes_it(pipeline: Pipeline) -> None:
    base = generate(pipeline, ("a <toy>", 7)).latents
    noise = {"noise": np.zeros((4, 8, 8), np.float32)}
    others = {
        "seed": generate(pipeline, ("a <toy>", 8)),
        "prompt": generate(pipeline, ("one <toy>", 7)),
        "embedding vectors": generate(pipeline, ("a <toy>", 7), concepts=[toy(1)]),
        "guidance": generate(pipeline, ("a <toy>", 7), guidance_scale=2.0),
        "no guidance": generate(pipeline, ("a <toy>", 7), guidance_scale=1.0),
        "negative prompt": generate(pipeline, ("a <toy>", 7), negative_prompt="blurry"),
        "placeholder token in the negative prompt": generate(pipeline, ("a <toy>", 7), negative_prompt="<toy>"),
        "steps": generate(pipeline, ("a <toy>", 7), sample_step=4),
        "original width": generate(pipeline, ("a <toy>", 7), orig_width=400),
        "original height": generate(pipeline, ("a <toy>", 7), orig_height=400),
        "target width": generate(pipeline, ("a <toy>", 7), target_width=400),
        "target height": generate(pipeline, ("a <toy>", 7), target_height=400),
        "crop top": generate(pipeline, ("a <toy>", 7), crop_coords_top=50),
        "crop left": generate(pipeline, ("a <toy>", 7), crop_coords_left=50),
        "noise": generate(pipeline, ("a <toy>", 7), fields=[noise]),
        "weight": generate(pipeline, ("a (<toy>:1.5)", 7)),
        "BREAK": generate(pipeline, ("a BREAK <toy>", 7)),
        "prompt by step": generate(pipeline, ("a [<toy>|cat]", 7)),
        "length": generate(pipeline, ("a <toy>" + " and more" * 60, 7)),
        "literal brackets": generate(pipeline, ("a (<toy>:1.5)", 7), prompt_weights=False),
    }
    same = [name for name, generated in others.items() if relative_error(generated.latents, base) < 1e-4]
    assert same == []
    assert relative_error(generate(pipeline, ("a <TOY> ", 7)).latents, base) == 0


@pytest.fixture(scope="module")
def of_four_steps(pipeline: Pipeline) -> Any:
    """Return the function from options to latents of one image in four steps; each is generated once."""

    @functools.cache
    def latents(options: frozenset[tuple[str, Any]]) -> np.ndarray:
        return generate(pipeline, ("a <toy>", 7), sample_step=4, **dict(options)).latents

    return lambda **options: latents(frozenset(options.items()))


@pytest.mark.parametrize(
    ("base", "changed"),
    [
        *(({}, {"sampler": name}) for name in samplers.SAMPLERS if name not in ("euler", "ddim")),
        ({}, {"schedule": "karras"}),
        ({}, {"schedule": "edm"}),
        ({}, {"schedule": "leading"}),
        ({"schedule": "leading"}, {"schedule": "trailing"}),
        *(({"schedule": "edm"}, {name: 2.0}) for name in ("sigma_min", "sigma_max", "rho")),
        ({"sampler": "euler_ancestral"}, {"eta": 0.5}),
        ({"sampler": "ddim"}, {"ddim_eta": 0.5}),
        ({"sampler": "dpmpp_2m_sde"}, {"s_noise": 0.9}),
        ({"sampler": "heun"}, {"s_churn": 1.0}),
        ({"sampler": "euler", "s_churn": 1.0}, {"s_tmin": 10.0}),
        ({"sampler": "euler", "s_churn": 1.0}, {"s_tmax": 1.0}),
        ({}, {"guider": "rescaled"}),
        ({}, {"guider": "none"}),
        ({"guider": "rescaled"}, {"guidance_rescale": 0.2}),
    ],
    ids=str,
)
def test_every_option_of_sampler_schedule_and_guider_changes_the_image(
    of_four_steps: Any, base: dict[str, Any], changed: dict[str, Any]
) -> None:
    latents = of_four_steps(**{**base, **changed})
    assert relative_error(latents, of_four_steps(**base)) > 1e-3
    assert np.isfinite(latents).all()


def test_without_guidance_the_negative_prompt_has_no_effect(pipeline: Pipeline) -> None:
    a = generate(pipeline, ("a <toy>", 7), guider="none", negative_prompt="<toy>").latents
    b = generate(pipeline, ("a <toy>", 7), guider="IdentityGuider", guidance_scale=9.0).latents
    c = generate(pipeline, ("a <toy>", 7), guidance_scale=1.0).latents
    assert np.array_equal(a, b)
    assert np.array_equal(a, c)


@pytest.mark.parametrize("sampler", ["euler_ancestral", "dpmpp_2m_sde", "lcm"])
def test_each_image_has_sampler_noise_of_its_own(pipeline: Pipeline, sampler: str) -> None:
    prompts = [("a <toy>", 7), ("a (<toy>:1.2)", 8), ("[two|<toy>]", 9)]
    together = generate(pipeline, *prompts, batch_size=3, sampler=sampler).latents
    for prompt, latents in zip(prompts, together, strict=True):
        assert relative_error(generate(pipeline, prompt, sampler=sampler).latents[0], latents) < 1e-5


def test_prompts_of_different_lengths_get_batches_of_their_own(pipeline: Pipeline) -> None:
    prompts = [("a <toy>", 7), (LONG, 8), ("two <toy>", 9)]
    together = generate(pipeline, *prompts, batch_size=2)
    assert [(step.done, step.total) for step in together.progress] == [(k, 9) for k in range(1, 10)]
    for prompt, image in zip(prompts, together.images, strict=True):
        assert np.abs(generate(pipeline, prompt).images[0].astype(int) - image).max() <= 1


def test_requests_of_different_sizes_steps_and_scales_get_batches_of_their_own(pipeline: Pipeline) -> None:
    embeddings = combine([toy()], pipeline.model.config)
    options: list[dict[str, Any]] = [
        {"sample_step": 2},
        {"sample_step": 3, "negative_prompt": "blurry"},
        {"sample_step": 3, "width": 24},
        {"sample_step": 3, "guidance_scale": 2.0},
        {"sample_step": 3, "guidance_scale": 2.0},
    ]
    requests = [
        image_request("a <toy>", seed, pipeline.model.config, embeddings, SamplingConfig(**each))
        for seed, each in enumerate(options)
    ]
    progress = list(pipeline.generate(requests, embeddings, SamplingConfig(batch_size=2)))
    assert [(step.done, step.total) for step in progress] == [(k, 11) for k in range(1, 12)]
    images = [image for step in progress for image in step.images]
    for seed, (each, image) in enumerate(zip(options, images, strict=True)):
        alone = generate(pipeline, ("a <toy>", seed), **each).images[0]
        assert np.abs(alone.astype(int) - image).max() <= 1, each


def test_without_guidance_a_long_negative_prompt_does_not_mix_lengths(pipeline: Pipeline) -> None:
    prompts = [("a <toy>", 7), (LONG, 8)]
    options = {"guider": "IdentityGuider", "negative_prompt": "blurry " * 80}
    together = generate(pipeline, *prompts, batch_size=2, **options).latents
    for prompt, latents in zip(prompts, together, strict=True):
        assert relative_error(generate(pipeline, prompt, **options).latents[0], latents) < 1e-5


def test_previews_are_yielded_at_their_interval(pipeline: Pipeline) -> None:
    options = {"batch_size": 2, "sample_step": 5, "preview_interval": 2}
    progress = generate(pipeline, ("a <toy>", 7), ("a <toy>", 8), **options).progress
    assert [len(step.previews) for step in progress] == [0, 2, 0, 2, 0]
    assert progress[1].previews[0].shape == (8, 8, 3)
    # They show denoised latents, not noisy ones: the last preview is nearly the image's.
    assert progress[-1].latents is not None
    end = pipeline.decoder.preview(progress[-1].latents)[0].astype(int)
    assert np.abs(progress[3].previews[0] - end).mean() < np.abs(progress[1].previews[0] - end).mean()


def test_any_number_of_embeddings_and_none(pipeline: Pipeline) -> None:
    both = (toy(), toy(3, "<hat>"))
    with_both = generate(pipeline, ("a <toy> with <hat>", 7), concepts=both).latents
    swapped = generate(pipeline, ("a <hat> with <toy>", 7), concepts=both).latents
    assert relative_error(swapped, with_both) > 1e-4
    # The order of the files does not matter, and an embedding that no prompt uses changes nothing.
    reordered = generate(pipeline, ("a <toy> with <hat>", 7), concepts=both[::-1]).latents
    assert relative_error(reordered, with_both) < 1e-6
    alone = generate(pipeline, ("a <toy>", 7)).latents
    assert relative_error(generate(pipeline, ("a <toy>", 7), concepts=both).latents, alone) < 1e-6
    generate(pipeline, ("a cat", 7), concepts=())


def test_images_of_other_shapes(pipeline: Pipeline) -> None:
    # 24 pixels are 12 latents, 6 below; 8 pixels are 4, then 2. Height and width are not mixed up.
    assert generate(pipeline, ("a <toy>", 7), height=24, width=8).images.shape == (1, 24, 8, 3)


def test_pooling_changes_the_image(workshop: Workshop, pipeline: Pipeline) -> None:
    other = Pipeline(workshop.model, PYNATIVE, "argmax")
    a, b = (generate(p, ("a <toy>", 7)).latents for p in (pipeline, other))
    assert relative_error(a, b) > 1e-4


@pytest.mark.graph
def test_graph_mode_generates_the_same(workshop: Workshop, pipeline: Pipeline) -> None:
    graph = Pipeline(workshop.model, Backend("CPU", graph=True, dtype=ms.float32), "end_of_text")
    a, b = (generate(p, ("a <toy>", 7), negative_prompt="blurry").latents for p in (pipeline, graph))
    assert relative_error(b, a) < 1e-4


def test_a_skipped_image_leaves_the_others_as_they_are(pipeline: Pipeline) -> None:
    whole = generate(pipeline, *(("a <toy>", seed) for seed in range(3)))
    embeddings = combine([toy()], pipeline.model.config)
    requests = [
        image_request("a <toy>", seed, pipeline.model.config, embeddings, SamplingConfig(sample_step=3))
        for seed in range(3)
    ]
    answers = iter([False, False, True, False, False])  # not asked after the last step of an image
    progress = list(pipeline.generate(requests, embeddings, SamplingConfig(sample_step=3), skip=lambda: next(answers)))
    assert [(step.done, len(step.images), step.skipped) for step in progress] == [
        (1, 0, 0),
        (2, 0, 0),
        (3, 1, 0),
        (4, 0, 0),
        (6, 0, 1),
        (7, 0, 0),
        (8, 0, 0),
        (9, 1, 0),
    ]
    images = [image for step in progress for image in step.images]
    for image, seed in zip(images, (0, 2), strict=True):
        assert np.abs(image.astype(int) - whole.images[seed]).max() <= 1
