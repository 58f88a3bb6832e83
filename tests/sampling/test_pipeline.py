"""Images: which options change them, and which must not."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import pytest

from gm.checkpoints import loading
from gm.config import SamplingConfig
from gm.diffusion import samplers
from gm.embeddings.embedding import Embedding, combine
from gm.models import sdxl
from gm.runtime.backend import Backend
from gm.sampling.image_request import ImageRequest, SamplingProgress
from gm.sampling.pipeline import Pipeline
from tests.project import Workshop
from tests.reference.inputs import relative_error


@pytest.fixture(scope="module")
def pipeline(workshop: Workshop) -> Pipeline:
    return Pipeline(workshop.model, Backend("CPU", graph=False, dtype=ms.float32), "end_of_text")


def toy(seed: int = 0, word: str = "<toy>") -> Embedding:
    random = np.random.default_rng(seed)
    return Embedding(
        word,
        dict(
            zip(
                ("clip_l", "clip_g"),
                (random.standard_normal((2, width)).astype(np.float32) for width in (16, 24)),
                strict=True,
            )
        ),
    )


def draw(
    pipeline: Pipeline, *requests: ImageRequest, concepts: tuple[Embedding, ...] = (toy(),), **options: Any
) -> tuple[np.ndarray, np.ndarray, list[SamplingProgress]]:
    sampling = SamplingConfig(**{"sample_step": 3, **options})
    drawn = list(pipeline.draw(requests, combine(concepts, pipeline.model.config), sampling))
    latents = np.concatenate([d.latents for d in drawn if d.latents is not None])
    return np.stack([p for d in drawn for p in d.images]), latents, drawn


def test_images_and_progress(pipeline: Pipeline) -> None:
    images, latents, drawn = draw(pipeline, *(ImageRequest("a <toy>", k) for k in range(3)), batch_size=2)
    assert images.shape == (3, 16, 16, 3)
    assert images.dtype == np.uint8
    assert latents.shape == (3, 4, 8, 8)
    assert [(d.done, len(d.images)) for d in drawn] == [(1, 0), (2, 0), (3, 2), (4, 0), (5, 0), (6, 1)]
    assert {d.total for d in drawn} == {6}


def test_narrow_weights_draw_the_very_same(workshop: Workshop, tmp_path: Path) -> None:
    config, latents = workshop.config(), []
    loading.convert(config.run.weight, tmp_path / "half.safetensors", config.model, "float16")
    for keep_half_above in (math.inf, 300):
        model = sdxl.build(config.model)
        loading.load_weights(model, tmp_path / "half.safetensors", config.model, keep_half_above)
        pipeline = Pipeline(model, Backend("CPU", graph=False, dtype=ms.float32), "end_of_text")
        latents.append(draw(pipeline, ImageRequest("a <toy>", 7))[1])
    assert model.unet.time_embed[0].weight.dtype == ms.float16
    assert relative_error(latents[1], latents[0]) < 1e-6


def test_an_image_is_the_same_whatever_the_batch(pipeline: Pipeline) -> None:
    requests = [ImageRequest("a <toy>", 7), ImageRequest("two <toy>", 8), ImageRequest("a <toy>", 9)]
    together, alone = draw(pipeline, *requests, batch_size=3)[1], draw(pipeline, *requests, batch_size=1)[1]
    padded = draw(pipeline, *requests, batch_size=2)[1]
    assert relative_error(together, alone) < 1e-5
    assert relative_error(padded, alone) < 1e-5
    assert relative_error(draw(pipeline, requests[1])[1], alone[1:2]) < 1e-5


def test_everything_that_should_change_an_image_does(pipeline: Pipeline) -> None:
    base = draw(pipeline, ImageRequest("a <toy>", 7))[1]
    others = {
        "seed": draw(pipeline, ImageRequest("a <toy>", 8))[1],
        "prompt": draw(pipeline, ImageRequest("one <toy>", 7))[1],
        "rows": draw(pipeline, ImageRequest("a <toy>", 7), concepts=(toy(1),))[1],
        "guidance": draw(pipeline, ImageRequest("a <toy>", 7), guidance_scale=2.0)[1],
        "no guidance": draw(pipeline, ImageRequest("a <toy>", 7), guidance_scale=1.0)[1],
        "negative": draw(pipeline, ImageRequest("a <toy>", 7), negative_prompt="blurry")[1],
        "negative with a concept": draw(pipeline, ImageRequest("a <toy>", 7), negative_prompt="<toy>")[1],
        "steps": draw(pipeline, ImageRequest("a <toy>", 7), sample_step=4)[1],
        "original size": draw(pipeline, ImageRequest("a <toy>", 7), orig_width=400)[1],
        "original height": draw(pipeline, ImageRequest("a <toy>", 7), orig_height=400)[1],
        "target size": draw(pipeline, ImageRequest("a <toy>", 7), target_width=400)[1],
        "target height": draw(pipeline, ImageRequest("a <toy>", 7), target_height=400)[1],
        "crop": draw(pipeline, ImageRequest("a <toy>", 7), crop_coords_top=50)[1],
        "crop left": draw(pipeline, ImageRequest("a <toy>", 7), crop_coords_left=50)[1],
        "noise": draw(pipeline, ImageRequest("a <toy>", 7, np.zeros((4, 8, 8), np.float32)))[1],
        "weight": draw(pipeline, ImageRequest("a (<toy>:1.5)", 7))[1],
        "BREAK": draw(pipeline, ImageRequest("a BREAK <toy>", 7))[1],
        "by step": draw(pipeline, ImageRequest("a [<toy>|cat]", 7))[1],
        "long": draw(pipeline, ImageRequest("a <toy>" + " and more" * 60, 7))[1],
        "plain brackets": draw(pipeline, ImageRequest("a (<toy>:1.5)", 7), prompt_weights=False)[1],
    }
    same = [name for name, latents in others.items() if relative_error(latents, base) < 1e-4]
    assert same == []
    assert relative_error(draw(pipeline, ImageRequest("a <TOY> ", 7))[1], base) == 0


@pytest.mark.parametrize(
    ("base", "changed"),
    [
        *(({}, {"sampler": name}) for name in samplers.SAMPLERS if name != "euler"),
        ({}, {"schedule": "karras"}),
        ({}, {"schedule": "edm"}),
        *(({"schedule": "edm"}, {name: 2.0}) for name in ("sigma_min", "sigma_max", "rho")),
        ({"sampler": "euler_ancestral"}, {"eta": 0.5}),
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
def test_every_way_from_noise_draws_another_image(
    pipeline: Pipeline, base: dict[str, Any], changed: dict[str, Any]
) -> None:
    a, b = (
        draw(pipeline, ImageRequest("a <toy>", 7), sample_step=4, **options)[1] for options in (base, base | changed)
    )
    assert relative_error(b, a) > 1e-3
    assert np.isfinite(b).all()


def test_without_guidance_the_negative_prompt_is_not_heard(pipeline: Pipeline) -> None:
    a = draw(pipeline, ImageRequest("a <toy>", 7), guider="none", negative_prompt="<toy>")[1]
    b = draw(pipeline, ImageRequest("a <toy>", 7), guider="IdentityGuider", guidance_scale=9.0)[1]
    c = draw(pipeline, ImageRequest("a <toy>", 7), guidance_scale=1.0)[1]
    assert np.array_equal(a, b)
    assert np.array_equal(a, c)


@pytest.mark.parametrize("sampler", ["euler_ancestral", "dpmpp_2m_sde", "lcm"])
def test_fresh_noise_is_an_images_own(pipeline: Pipeline, sampler: str) -> None:
    requests = [ImageRequest("a <toy>", 7), ImageRequest("a (<toy>:1.2)", 8), ImageRequest("[two|<toy>]", 9)]
    together = draw(pipeline, *requests, batch_size=3, sampler=sampler)[1]
    for order, latents in zip(requests, together, strict=True):
        assert relative_error(draw(pipeline, order, sampler=sampler)[1][0], latents) < 1e-5


def test_prompts_of_other_lengths_are_drawn_in_batches_of_their_own(pipeline: Pipeline) -> None:
    long = "a <toy>" + " and more" * 40
    requests = [ImageRequest("a <toy>", 7), ImageRequest(long, 8), ImageRequest("two <toy>", 9)]
    together, _, drawn = draw(pipeline, *requests, batch_size=2)
    assert [(d.done, d.total) for d in drawn] == [(k, 9) for k in range(1, 10)]
    for order, image in zip(requests, together, strict=True):
        assert np.abs(draw(pipeline, order)[0][0].astype(int) - image).max() <= 1


def test_without_guidance_a_long_negative_prompt_makes_no_batch_of_unlike_prompts(pipeline: Pipeline) -> None:
    requests = [ImageRequest("a <toy>", 7), ImageRequest("a <toy>" + " and more" * 40, 8)]
    options = {"guider": "IdentityGuider", "negative_prompt": "blurry " * 80}
    together = draw(pipeline, *requests, batch_size=2, **options)[1]
    for order, latents in zip(requests, together, strict=True):
        assert relative_error(draw(pipeline, order, **options)[1][0], latents) < 1e-5


def test_previews_come_between(pipeline: Pipeline) -> None:
    *_, drawn = draw(
        pipeline,
        ImageRequest("a <toy>", 7),
        ImageRequest("a <toy>", 8),
        batch_size=2,
        sample_step=5,
        preview_interval=2,
    )
    assert [len(d.previews) for d in drawn] == [0, 2, 0, 2, 0]
    assert drawn[1].previews[0].shape == (8, 8, 3)
    # They show what is believed in, not what is still noise: the last one is nearly the image's.
    assert drawn[-1].latents is not None
    end = pipeline.decoder.preview(drawn[-1].latents)[0].astype(int)
    assert np.abs(drawn[3].previews[0] - end).mean() < np.abs(drawn[1].previews[0] - end).mean()


def test_any_number_of_concepts_and_none(pipeline: Pipeline) -> None:
    both = (toy(), toy(3, "<hat>"))
    with_both = draw(pipeline, ImageRequest("a <toy> with <hat>", 7), concepts=both)[1]
    swapped = draw(pipeline, ImageRequest("a <hat> with <toy>", 7), concepts=both)[1]
    assert relative_error(swapped, with_both) > 1e-4
    # The order in which files are given does not matter, and a concept that is not named changes nothing.
    assert (
        relative_error(draw(pipeline, ImageRequest("a <toy> with <hat>", 7), concepts=both[::-1])[1], with_both) < 1e-6
    )
    alone = draw(pipeline, ImageRequest("a <toy>", 7))[1]
    assert relative_error(draw(pipeline, ImageRequest("a <toy>", 7), concepts=both)[1], alone) < 1e-6
    draw(pipeline, ImageRequest("a cat", 7), concepts=())


def test_images_of_other_shapes(pipeline: Pipeline) -> None:
    # 24 pixels are 12 latents, 6 below; 8 pixels are 4, then 2. Height and width are not mixed up.
    assert draw(pipeline, ImageRequest("a <toy>", 7), height=24, width=8)[0].shape == (1, 24, 8, 3)


def test_pooling_changes_the_image(workshop: Workshop, pipeline: Pipeline) -> None:
    other = Pipeline(workshop.model, Backend("CPU", graph=False, dtype=ms.float32), "argmax")
    a, b = (draw(p, ImageRequest("a <toy>", 7))[1] for p in (pipeline, other))
    assert relative_error(a, b) > 1e-4


def test_graph_mode_draws_the_same(workshop: Workshop, pipeline: Pipeline) -> None:
    graph = Pipeline(workshop.model, Backend("CPU", graph=True, dtype=ms.float32), "end_of_text")
    a, b = (draw(p, ImageRequest("a <toy>", 7), negative_prompt="blurry")[1] for p in (pipeline, graph))
    assert relative_error(b, a) < 1e-4
