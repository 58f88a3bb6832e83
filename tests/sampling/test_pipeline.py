"""Pictures: which options change them, and which must not."""

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
from gm.embeddings.embedding import Concept, words
from gm.models import sdxl
from gm.runtime.backend import Backend
from gm.sampling.orders import Drawn, Order
from gm.sampling.pipeline import Painter
from tests.project import Workshop
from tests.reference.inputs import relative_error


@pytest.fixture(scope="module")
def painter(workshop: Workshop) -> Painter:
    return Painter(workshop.model, Backend("CPU", graph=False, dtype=ms.float32), "end_of_text")


def toy(seed: int = 0, word: str = "<toy>") -> Concept:
    random = np.random.default_rng(seed)
    return Concept(word, *(random.standard_normal((2, width)).astype(np.float32) for width in (16, 24)))


def draw(
    painter: Painter, *orders: Order, concepts: tuple[Concept, ...] = (toy(),), **options: Any
) -> tuple[np.ndarray, np.ndarray, list[Drawn]]:
    sampling = SamplingConfig(**{"sample_step": 3, **options})
    drawn = list(painter.draw(orders, words(concepts, painter.model.config), sampling))
    latents = np.concatenate([d.latents for d in drawn if d.latents is not None])
    return np.stack([p for d in drawn for p in d.pictures]), latents, drawn


def test_pictures_and_progress(painter: Painter) -> None:
    pictures, latents, drawn = draw(painter, *(Order("a <toy>", k) for k in range(3)), batch_size=2)
    assert pictures.shape == (3, 16, 16, 3)
    assert pictures.dtype == np.uint8
    assert latents.shape == (3, 4, 8, 8)
    assert [(d.done, len(d.pictures)) for d in drawn] == [(1, 0), (2, 0), (3, 2), (4, 0), (5, 0), (6, 1)]
    assert {d.total for d in drawn} == {6}


def test_narrow_weights_draw_the_very_same(workshop: Workshop, tmp_path: Path) -> None:
    config, latents = workshop.config(), []
    loading.convert(config.run.weight, tmp_path / "half.safetensors", config.model, "float16")
    for widened in (math.inf, 300):
        model = sdxl.build(config.model)
        loading.load(model, tmp_path / "half.safetensors", config.model, widened)
        painter = Painter(model, Backend("CPU", graph=False, dtype=ms.float32), "end_of_text")
        latents.append(draw(painter, Order("a <toy>", 7))[1])
    assert model.unet.time_embed[0].weight.dtype == ms.float16
    assert relative_error(latents[1], latents[0]) < 1e-6


def test_a_picture_is_the_same_whatever_the_batch(painter: Painter) -> None:
    orders = [Order("a <toy>", 7), Order("two <toy>", 8), Order("a <toy>", 9)]
    together, alone = draw(painter, *orders, batch_size=3)[1], draw(painter, *orders, batch_size=1)[1]
    padded = draw(painter, *orders, batch_size=2)[1]
    assert relative_error(together, alone) < 1e-5
    assert relative_error(padded, alone) < 1e-5
    assert relative_error(draw(painter, orders[1])[1], alone[1:2]) < 1e-5


def test_everything_that_should_change_a_picture_does(painter: Painter) -> None:
    base = draw(painter, Order("a <toy>", 7))[1]
    others = {
        "seed": draw(painter, Order("a <toy>", 8))[1],
        "prompt": draw(painter, Order("one <toy>", 7))[1],
        "rows": draw(painter, Order("a <toy>", 7), concepts=(toy(1),))[1],
        "guidance": draw(painter, Order("a <toy>", 7), guidance_scale=2.0)[1],
        "no guidance": draw(painter, Order("a <toy>", 7), guidance_scale=1.0)[1],
        "negative": draw(painter, Order("a <toy>", 7), negative_prompt="blurry")[1],
        "negative with a concept": draw(painter, Order("a <toy>", 7), negative_prompt="<toy>")[1],
        "steps": draw(painter, Order("a <toy>", 7), sample_step=4)[1],
        "original size": draw(painter, Order("a <toy>", 7), orig_width=400)[1],
        "original height": draw(painter, Order("a <toy>", 7), orig_height=400)[1],
        "target size": draw(painter, Order("a <toy>", 7), target_width=400)[1],
        "target height": draw(painter, Order("a <toy>", 7), target_height=400)[1],
        "crop": draw(painter, Order("a <toy>", 7), crop_coords_top=50)[1],
        "crop left": draw(painter, Order("a <toy>", 7), crop_coords_left=50)[1],
        "noise": draw(painter, Order("a <toy>", 7, np.zeros((4, 8, 8), np.float32)))[1],
        "weight": draw(painter, Order("a (<toy>:1.5)", 7))[1],
        "BREAK": draw(painter, Order("a BREAK <toy>", 7))[1],
        "by step": draw(painter, Order("a [<toy>|cat]", 7))[1],
        "long": draw(painter, Order("a <toy>" + " and more" * 60, 7))[1],
        "plain brackets": draw(painter, Order("a (<toy>:1.5)", 7), prompt_weights=False)[1],
    }
    same = [name for name, latents in others.items() if relative_error(latents, base) < 1e-4]
    assert same == []
    assert relative_error(draw(painter, Order("a <TOY> ", 7))[1], base) == 0


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
def test_every_way_from_noise_draws_another_picture(
    painter: Painter, base: dict[str, Any], changed: dict[str, Any]
) -> None:
    a, b = (draw(painter, Order("a <toy>", 7), sample_step=4, **options)[1] for options in (base, base | changed))
    assert relative_error(b, a) > 1e-3
    assert np.isfinite(b).all()


def test_without_guidance_the_negative_prompt_is_not_heard(painter: Painter) -> None:
    a = draw(painter, Order("a <toy>", 7), guider="none", negative_prompt="<toy>")[1]
    b = draw(painter, Order("a <toy>", 7), guider="IdentityGuider", guidance_scale=9.0)[1]
    c = draw(painter, Order("a <toy>", 7), guidance_scale=1.0)[1]
    assert np.array_equal(a, b)
    assert np.array_equal(a, c)


@pytest.mark.parametrize("sampler", ["euler_ancestral", "dpmpp_2m_sde", "lcm"])
def test_fresh_noise_is_a_pictures_own(painter: Painter, sampler: str) -> None:
    orders = [Order("a <toy>", 7), Order("a (<toy>:1.2)", 8), Order("[two|<toy>]", 9)]
    together = draw(painter, *orders, batch_size=3, sampler=sampler)[1]
    for order, latents in zip(orders, together, strict=True):
        assert relative_error(draw(painter, order, sampler=sampler)[1][0], latents) < 1e-5


def test_prompts_of_other_lengths_are_drawn_in_batches_of_their_own(painter: Painter) -> None:
    long = "a <toy>" + " and more" * 40
    orders = [Order("a <toy>", 7), Order(long, 8), Order("two <toy>", 9)]
    together, _, drawn = draw(painter, *orders, batch_size=2)
    assert [(d.done, d.total) for d in drawn] == [(k, 9) for k in range(1, 10)]
    for order, picture in zip(orders, together, strict=True):
        assert np.abs(draw(painter, order)[0][0].astype(int) - picture).max() <= 1


def test_without_guidance_a_long_negative_prompt_makes_no_batch_of_unlike_prompts(painter: Painter) -> None:
    orders = [Order("a <toy>", 7), Order("a <toy>" + " and more" * 40, 8)]
    options = {"guider": "IdentityGuider", "negative_prompt": "blurry " * 80}
    together = draw(painter, *orders, batch_size=2, **options)[1]
    for order, latents in zip(orders, together, strict=True):
        assert relative_error(draw(painter, order, **options)[1][0], latents) < 1e-5


def test_previews_come_between(painter: Painter) -> None:
    *_, drawn = draw(painter, Order("a <toy>", 7), Order("a <toy>", 8), batch_size=2, sample_step=5, preview_interval=2)
    assert [len(d.previews) for d in drawn] == [0, 2, 0, 2, 0]
    assert drawn[1].previews[0].shape == (8, 8, 3)
    # They show what is believed in, not what is still noise: the last one is nearly the picture's.
    assert drawn[-1].latents is not None
    end = painter.decoder.preview(drawn[-1].latents)[0].astype(int)
    assert np.abs(drawn[3].previews[0] - end).mean() < np.abs(drawn[1].previews[0] - end).mean()


def test_any_number_of_concepts_and_none(painter: Painter) -> None:
    both = (toy(), toy(3, "<hat>"))
    with_both = draw(painter, Order("a <toy> with <hat>", 7), concepts=both)[1]
    swapped = draw(painter, Order("a <hat> with <toy>", 7), concepts=both)[1]
    assert relative_error(swapped, with_both) > 1e-4
    # The order in which files are given does not matter, and a concept that is not named changes nothing.
    assert relative_error(draw(painter, Order("a <toy> with <hat>", 7), concepts=both[::-1])[1], with_both) < 1e-6
    alone = draw(painter, Order("a <toy>", 7))[1]
    assert relative_error(draw(painter, Order("a <toy>", 7), concepts=both)[1], alone) < 1e-6
    draw(painter, Order("a cat", 7), concepts=())


def test_pictures_of_other_shapes(painter: Painter) -> None:
    # 24 pixels are 12 latents, 6 below; 8 pixels are 4, then 2. Height and width are not mixed up.
    assert draw(painter, Order("a <toy>", 7), height=24, width=8)[0].shape == (1, 24, 8, 3)


def test_pooling_changes_the_picture(workshop: Workshop, painter: Painter) -> None:
    other = Painter(workshop.model, Backend("CPU", graph=False, dtype=ms.float32), "argmax")
    a, b = (draw(p, Order("a <toy>", 7))[1] for p in (painter, other))
    assert relative_error(a, b) > 1e-4


def test_graph_mode_draws_the_same(workshop: Workshop, painter: Painter) -> None:
    graph = Painter(workshop.model, Backend("CPU", graph=True, dtype=ms.float32), "end_of_text")
    a, b = (draw(p, Order("a <toy>", 7), negative_prompt="blurry")[1] for p in (painter, graph))
    assert relative_error(b, a) < 1e-4
