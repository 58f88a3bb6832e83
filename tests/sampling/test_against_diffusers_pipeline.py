"""diffusers' whole SDXL pipeline beside ours: the same images from the same noise, learned words included."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import pytest

from gm.config import SamplingConfig
from gm.embeddings.embedding import Embedding, combine
from gm.embeddings.io import load, save, to_embedding_file, write_file
from gm.hub import export, layout
from gm.runtime.backend import Backend
from gm.sampling.image_request import ImageRequest, SamplingProgress
from gm.sampling.pipeline import Pipeline
from tests.project import Call
from tests.reference.case import Case
from tests.reference.inputs import normal, relative_error

EMBEDDING = Path(__file__).resolve().parents[2] / "tools" / "convert_weights" / "embedding.py"
NOISE = normal(0, 2, 4, 8, 8)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Return a model for this file alone: diffusers adds the learned rows to its encoders."""
    return Case("like-base", tmp_path_factory.mktemp("pipeline"))


@pytest.fixture(scope="module")
def pipe(case: Case):
    from tests.reference.pipeline import pipeline  # takes seconds to import

    return pipeline(case.reference, case.folder)


def ours(
    case: Case, prompts: tuple[str, str], concepts: list[Embedding], steps: int = 6, **options: Any
) -> SamplingProgress:
    """Draw the prompts from `NOISE`, and from the `image` and `mask` of `options`."""
    starts = {name: options.pop(name, [None] * 2) for name in ("image", "mask")}
    sampling = SamplingConfig(sample_step=steps, guidance_scale=5.0, batch_size=2, **options)
    pipeline = Pipeline(case.model, Backend("CPU", graph=False, dtype=ms.float32), "end_of_text")
    each = zip(prompts, NOISE, *starts.values(), strict=True)
    requests = [ImageRequest(text, 0, noise, image, mask) for text, noise, image, mask in each]
    *_, last = pipeline.draw(requests, combine(concepts, case.config), sampling)
    assert last.latents is not None
    return last


def learned(case: Case, word: str, seed: int) -> Embedding:
    widths = (case.config.text_encoder_1.width, case.config.text_encoder_2.width)
    return Embedding(
        word,
        dict(
            zip(("clip_l", "clip_g"), (0.5 * normal(seed + k, 3, width) for k, width in enumerate(widths)), strict=True)
        ),
    )


def test_the_same_images(case: Case, pipe) -> None:
    from tests.reference.pipeline import draw

    prompts = ("a red heart on a white background", "It's 2 STRIPED circles, naïvely drawn")
    latents, images = draw(pipe, prompts, NOISE, steps=6, guidance_scale=5.0)
    drawn = ours(case, prompts, [])
    assert relative_error(drawn.latents, latents) < 1e-4
    assert np.abs(np.stack(drawn.images).astype(int) - images).max() <= 1


def test_a_learned_word_goes_over_in_its_file(case: Case, pipe, tmp_path: Path) -> None:
    from tests.reference.pipeline import draw, load_word

    concept = learned(case, "<thing>", 0)
    save(concept, tmp_path / "thing.safetensors")
    load_word(pipe, tmp_path / "thing.safetensors", "<thing>")
    prompts = ("a <thing> on a blue background", "<thing> and a heart")
    latents, _ = draw(pipe, prompts, NOISE, steps=6, guidance_scale=5.0)
    assert relative_error(ours(case, prompts, [concept]).latents, latents) < 1e-4
    other = learned(case, "<thing>", 9)
    assert relative_error(ours(case, prompts, [other]).latents, latents) > 1e-3


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_the_same_images_from_images(case: Case, pipe, strength: float) -> None:
    from tests.reference.pipeline import redraw

    prompts, images = ("a red heart", "a circle"), normal(70, 2, 4, 8, 8)
    expected = redraw(pipe, prompts, images, NOISE, steps=6, strength=strength, guidance_scale=5.0)
    drawn = ours(case, prompts, [], image=images, strength=strength, task="img2img")
    assert (drawn.done, drawn.total) == (6 * strength, 6 * strength)
    assert relative_error(drawn.latents, expected) < 1e-4


def test_the_same_images_behind_a_mask(case: Case, pipe) -> None:
    from tests.reference.pipeline import redraw

    prompts, images = ("a red heart", "a circle"), normal(70, 2, 4, 8, 8)
    mask = np.zeros((64, 64), np.float32)
    mask[16:40, 8:] = 1.0
    expected = redraw(pipe, prompts, images, NOISE, mask, steps=6, strength=0.5, guidance_scale=5.0)
    masks = [mask[::8, ::8]] * 2
    drawn = ours(case, prompts, [], image=images, mask=masks, strength=0.5, task="inpaint")
    assert relative_error(drawn.latents, expected) < 1e-4
    assert drawn.latents is not None
    kept = masks[0] == 0
    assert relative_error(drawn.latents[:, :, kept], images[:, :, kept]) < 1e-6
    everywhere = ours(case, prompts, [], image=images, strength=0.5, task="img2img")
    assert relative_error(everywhere.latents, expected) > 1e-2


def same_image(case: Case, pipe, concept: Embedding) -> bool:
    """Return whether both draw the same with the word, and another word's rows would be seen."""
    from tests.reference.pipeline import draw

    prompts = (f"a {concept.placeholder_token} on a table", f"two {concept.placeholder_token}, red")
    latents, _ = draw(pipe, prompts, NOISE, steps=2, guidance_scale=5.0)
    other = learned(case, concept.placeholder_token, 90)
    assert relative_error(ours(case, prompts, [other], steps=2).latents, latents) > 1e-3
    return relative_error(ours(case, prompts, [concept], steps=2).latents, latents) < 1e-4


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_diffusers_loads_the_pair_that_is_written_here(case: Case, pipe, tmp_path: Path, ending: str) -> None:
    from tests.reference.pipeline import load_pair

    concept = learned(case, f"<ours-{ending}>", 20)
    load_pair(pipe, write_file(to_embedding_file(concept), tmp_path / f"learned_embeds.{ending}", "diffusers"))
    assert same_image(case, pipe, concept)


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_the_pair_that_diffusers_script_writes_draws_the_same_here(
    case: Case, pipe, tmp_path: Path, ending: str
) -> None:
    from tests.reference.pipeline import load_pair, save_pair

    concept = learned(case, f"<theirs-{ending}>", 30)
    paths = [tmp_path / f"learned_embeds{second}.{ending}" for second in ("", "_2")]
    save_pair((concept.vectors["clip_l"], concept.vectors["clip_g"]), concept.placeholder_token, paths)
    load_pair(pipe, paths)
    assert same_image(case, pipe, load(tmp_path))


def test_a_pair_goes_through_the_script_to_the_common_file_and_on_to_diffusers(
    case: Case, pipe, tmp_path: Path, call: Call
) -> None:
    from tests.reference.pipeline import load_word, save_pair

    concept = learned(case, "<through>", 40)
    paths = [tmp_path / f"learned_embeds{second}.safetensors" for second in ("", "_2")]
    save_pair((concept.vectors["clip_l"], concept.vectors["clip_g"]), concept.placeholder_token, paths)
    target = tmp_path / "through.safetensors"
    code, _, error = call(EMBEDDING, "convert", "--source", tmp_path, "--target", target)
    assert (code, error) == (0, "")
    load_word(pipe, target, "<through>")
    assert same_image(case, pipe, load(target))


def test_a_published_folder_draws_the_same_in_diffusers_by_the_lines_on_its_card(
    case: Case, pipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(learned(case, "<shared>", 50), tmp_path / "shared_ti.ckpt")
    layout.write(export.prepare(tmp_path / "shared_ti.ckpt"), tmp_path / "shared")
    card = (tmp_path / "shared" / layout.MODEL_CARD).read_text()
    code = re.findall(r"```python\n(.*?)```", card, re.DOTALL)[0].splitlines()
    (pooling,) = re.findall(r"`(pipe\.\S+ = \d+)`", card)
    monkeypatch.setattr(type(pipe), "from_pretrained", lambda *given, **options: pipe)
    monkeypatch.chdir(tmp_path / "shared")
    exec("\n".join([*code[:-1], pooling]), {})  # the last line draws
    assert same_image(case, pipe, load(tmp_path / "shared"))
