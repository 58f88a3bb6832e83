"""diffusers' whole SDXL pipeline beside ours: the same pictures from the same noise, learned words included."""

from __future__ import annotations

from pathlib import Path

import mindspore as ms
import numpy as np
import pytest

from gm.backend import Backend
from gm.concepts.concept import Concept, words
from gm.concepts.files import save
from gm.config import SamplingConfig
from gm.generation.text_to_image import Drawn, Order, Painter
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


def ours(case: Case, prompts: tuple[str, str], concepts: list[Concept]) -> Drawn:
    sampling = SamplingConfig(sample_step=6, guidance_scale=5.0, batch_size=2)
    painter = Painter(case.model, Backend("CPU", graph=False, dtype=ms.float32), "end_of_text")
    orders = [Order(text, 0, noise) for text, noise in zip(prompts, NOISE, strict=True)]
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
