"""diffusers' whole SDXL pipeline beside ours: the same pictures from the same noise, learned words included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import pytest

from gm.backend import Backend
from gm.concepts.concept import Concept, words
from gm.concepts.files import save
from gm.config import SamplingConfig
from gm.generation.orders import Drawn, Order
from gm.generation.painter import Painter
from tests.reference.case import Case
from tests.reference.inputs import normal, relative_error

NOISE = normal(0, 2, 4, 8, 8)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Return a model for this file alone: diffusers adds the learned rows to its encoders."""
    return Case("like-base", tmp_path_factory.mktemp("pipeline"))


@pytest.fixture(scope="module")
def pipe(case: Case):
    from tests.reference.pipeline import pipeline  # takes seconds to import

    return pipeline(case.reference, case.folder)


def ours(case: Case, prompts: tuple[str, str], concepts: list[Concept], **options: Any) -> Drawn:
    """Draw the prompts from `NOISE`, and from the `picture` and `mask` of `options`."""
    starts = {name: options.pop(name, [None] * 2) for name in ("picture", "mask")}
    sampling = SamplingConfig(sample_step=6, guidance_scale=5.0, batch_size=2, **options)
    painter = Painter(case.model, Backend("CPU", graph=False, dtype=ms.float32), "end_of_text")
    each = zip(prompts, NOISE, *starts.values(), strict=True)
    orders = [Order(text, 0, noise, picture, mask) for text, noise, picture, mask in each]
    *_, last = painter.draw(orders, words(concepts, case.config), sampling)
    assert last.latents is not None
    return last


def test_the_same_pictures(case: Case, pipe) -> None:
    from tests.reference.pipeline import draw

    prompts = ("a red heart on a white background", "It's 2 STRIPED circles, naïvely drawn")
    latents, pictures = draw(pipe, prompts, NOISE, steps=6, guidance_scale=5.0)
    drawn = ours(case, prompts, [])
    assert relative_error(drawn.latents, latents) < 1e-4
    assert np.abs(np.stack(drawn.pictures).astype(int) - pictures).max() <= 1


def test_a_learned_word_goes_over_in_its_file(case: Case, pipe, tmp_path: Path) -> None:
    from tests.reference.pipeline import draw, load_word

    widths = (case.config.text_encoder_1.width, case.config.text_encoder_2.width)
    concept = Concept("<thing>", *(0.5 * normal(k, 3, width) for k, width in enumerate(widths)))
    save(concept, tmp_path / "thing.safetensors")
    load_word(pipe, tmp_path / "thing.safetensors", "<thing>")
    prompts = ("a <thing> on a blue background", "<thing> and a heart")
    latents, _ = draw(pipe, prompts, NOISE, steps=6, guidance_scale=5.0)
    assert relative_error(ours(case, prompts, [concept]).latents, latents) < 1e-4
    other = Concept("<thing>", *(0.5 * normal(9 + k, 3, width) for k, width in enumerate(widths)))
    assert relative_error(ours(case, prompts, [other]).latents, latents) > 1e-3


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_the_same_pictures_from_pictures(case: Case, pipe, strength: float) -> None:
    from tests.reference.pipeline import redraw

    prompts, pictures = ("a red heart", "a circle"), normal(70, 2, 4, 8, 8)
    expected = redraw(pipe, prompts, pictures, NOISE, steps=6, strength=strength, guidance_scale=5.0)
    drawn = ours(case, prompts, [], picture=pictures, strength=strength, task="img2img")
    assert (drawn.done, drawn.total) == (6 * strength, 6 * strength)
    assert relative_error(drawn.latents, expected) < 1e-4


def test_the_same_pictures_behind_a_mask(case: Case, pipe) -> None:
    from tests.reference.pipeline import redraw

    prompts, pictures = ("a red heart", "a circle"), normal(70, 2, 4, 8, 8)
    mask = np.zeros((64, 64), np.float32)
    mask[16:40, 8:] = 1.0
    expected = redraw(pipe, prompts, pictures, NOISE, mask, steps=6, strength=0.5, guidance_scale=5.0)
    masks = [mask[::8, ::8]] * 2
    drawn = ours(case, prompts, [], picture=pictures, mask=masks, strength=0.5, task="inpaint")
    assert relative_error(drawn.latents, expected) < 1e-4
    assert drawn.latents is not None
    kept = masks[0] == 0
    assert relative_error(drawn.latents[:, :, kept], pictures[:, :, kept]) < 1e-6
    everywhere = ours(case, prompts, [], picture=pictures, strength=0.5, task="img2img")
    assert relative_error(everywhere.latents, expected) > 1e-2
