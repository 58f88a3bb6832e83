"""diffusers' whole SDXL pipeline beside ours: the same images from the same noise, with trained embeddings too."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gm.embeddings import io as embedding_io
from gm.embeddings.embedding import Embedding
from gm.embeddings.io import load, save
from gm.hub import export, layout
from gm.sampling.pipeline import Pipeline
from tests.project import Call
from tests.reference.case import Case
from tests.reference.inputs import normal, relative_error
from tests.sampling.generation import PYNATIVE, Generated, generate

pytestmark = pytest.mark.reference

CONVERT_EMBEDDING = Path(__file__).resolve().parents[2] / "tools" / "convert_weights" / "embedding.py"
NOISE = normal(0, 2, 4, 8, 8)
Ours = Callable[..., Generated]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Return a model for this file alone: diffusers adds the embedding vectors to its encoders."""
    return Case("like-base", tmp_path_factory.mktemp("pipeline"))


@pytest.fixture(scope="module")
def pipe(case: Case):
    from tests.reference.pipeline import diffusers_pipeline  # takes seconds to import

    return diffusers_pipeline(case.reference, case.folder)


@pytest.fixture(scope="module")
def ours(case: Case) -> Ours:
    """Return the function from prompts and embeddings to what our pipeline generates from `NOISE`."""
    pipeline = Pipeline(case.model, PYNATIVE, "end_of_text")

    def generated(
        prompts: tuple[str, str], concepts: Sequence[Embedding] = (), steps: int = 6, **options: Any
    ) -> Generated:
        images, mask = options.pop("images", [None] * 2), options.pop("mask", None)
        fields = [
            {"noise": noise, "init_latents": latents, "mask": mask}
            for noise, latents in zip(NOISE, images, strict=True)
        ]
        options = {"sample_step": steps, "guidance_scale": 5.0, "batch_size": 2, **options}
        return generate(pipeline, *((text, 0) for text in prompts), concepts=concepts, fields=fields, **options)

    return generated


def embedding(case: Case, token: str, seed: int) -> Embedding:
    encoders = case.config.text_encoders.items()
    vectors = {name: 0.5 * normal(seed + k, 3, encoder.width) for k, (name, encoder) in enumerate(encoders)}
    return Embedding(token, vectors)


def test_images_from_noise(pipe, ours: Ours) -> None:
    from tests.reference import pipeline

    prompts = ("a red heart on a white background", "It's 2 STRIPED circles, naïvely drawn")
    latents, images = pipeline.generate(pipe, prompts, NOISE, steps=6, guidance_scale=5.0)
    generated = ours(prompts)
    assert relative_error(generated.latents, latents) < 1e-4
    assert np.abs(generated.images.astype(int) - images).max() <= 1


def test_diffusers_loads_our_safetensors_file(case: Case, pipe, ours: Ours, tmp_path: Path) -> None:
    from tests.reference import pipeline

    concept = embedding(case, "<thing>", 0)
    save(concept, tmp_path / "thing.safetensors")
    pipeline.load_embedding(pipe, tmp_path / "thing.safetensors", "<thing>")
    prompts = ("a <thing> on a blue background", "<thing> and a heart")
    latents, _ = pipeline.generate(pipe, prompts, NOISE, steps=6, guidance_scale=5.0)
    assert relative_error(ours(prompts, [concept]).latents, latents) < 1e-4
    other = embedding(case, "<thing>", 9)
    assert relative_error(ours(prompts, [other]).latents, latents) > 1e-3


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_img2img(pipe, ours: Ours, strength: float) -> None:
    from tests.reference import pipeline

    prompts, images = ("a red heart", "a circle"), normal(70, 2, 4, 8, 8)
    options = {"steps": 6, "strength": strength, "guidance_scale": 5.0}
    expected = pipeline.generate_from_images(pipe, prompts, images, NOISE, **options)
    generated = ours(prompts, images=images, strength=strength, task="img2img")
    last = generated.progress[-1]
    assert (last.done, last.total) == (6 * strength, 6 * strength)
    assert relative_error(generated.latents, expected) < 1e-4


def test_inpainting(pipe, ours: Ours) -> None:
    from tests.reference import pipeline

    prompts, images = ("a red heart", "a circle"), normal(70, 2, 4, 8, 8)
    mask = np.zeros((64, 64), np.float32)
    mask[16:40, 8:] = 1.0
    options = {"steps": 6, "strength": 0.5, "guidance_scale": 5.0}
    expected = pipeline.generate_from_images(pipe, prompts, images, NOISE, mask, **options)
    latent_mask = mask[::8, ::8]
    generated = ours(prompts, images=images, mask=latent_mask, strength=0.5, task="inpaint")
    assert relative_error(generated.latents, expected) < 1e-4
    protected = latent_mask == 0
    assert relative_error(generated.latents[:, :, protected], images[:, :, protected]) < 1e-6
    without_mask = ours(prompts, images=images, strength=0.5, task="img2img")
    assert relative_error(without_mask.latents, expected) > 1e-2


def same_images(case: Case, pipe, ours: Ours, concept: Embedding) -> bool:
    """Return whether both generate the same with the embedding; with other vectors they must not."""
    from tests.reference import pipeline

    prompts = (f"a {concept.placeholder_token} on a table", f"two {concept.placeholder_token}, red")
    latents, _ = pipeline.generate(pipe, prompts, NOISE, steps=2, guidance_scale=5.0)
    other = embedding(case, concept.placeholder_token, 90)
    assert relative_error(ours(prompts, [other], steps=2).latents, latents) > 1e-3
    return relative_error(ours(prompts, [concept], steps=2).latents, latents) < 1e-4


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_diffusers_loads_the_pair_of_files_written_here(
    case: Case, pipe, ours: Ours, tmp_path: Path, ending: str
) -> None:
    from tests.reference.pipeline import load_embedding_pair

    concept = embedding(case, f"<ours-{ending}>", 20)
    file = embedding_io.to_embedding_file(concept)
    target = tmp_path / f"learned_embeds.{ending}"
    load_embedding_pair(pipe, embedding_io.write_file(file, target, "diffusers"))
    assert same_images(case, pipe, ours, concept)


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_the_pair_of_files_of_diffusers_script_is_loaded_here(
    case: Case, pipe, ours: Ours, tmp_path: Path, ending: str
) -> None:
    from tests.reference.pipeline import load_embedding_pair, save_embedding_pair

    concept = embedding(case, f"<theirs-{ending}>", 30)
    paths = [tmp_path / f"learned_embeds{second}.{ending}" for second in ("", "_2")]
    save_embedding_pair(list(concept.vectors.values()), concept.placeholder_token, paths)
    load_embedding_pair(pipe, paths)
    assert same_images(case, pipe, ours, load(tmp_path))


def test_a_pair_is_converted_by_the_script_and_loaded_by_diffusers(
    case: Case, pipe, ours: Ours, tmp_path: Path, call: Call
) -> None:
    from tests.reference.pipeline import load_embedding, save_embedding_pair

    concept = embedding(case, "<through>", 40)
    paths = [tmp_path / f"learned_embeds{second}.safetensors" for second in ("", "_2")]
    save_embedding_pair(list(concept.vectors.values()), concept.placeholder_token, paths)
    target = tmp_path / "through.safetensors"
    code, _, error = call(CONVERT_EMBEDDING, "convert", "--source", tmp_path, "--target", target)
    assert (code, error) == (0, "")
    load_embedding(pipe, target, "<through>")
    assert same_images(case, pipe, ours, load(target))


def test_the_code_on_a_model_card_loads_the_folder_in_diffusers(
    case: Case, pipe, ours: Ours, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(embedding(case, "<shared>", 50), tmp_path / "shared_ti.ckpt")
    layout.write(export.prepare(tmp_path / "shared_ti.ckpt"), tmp_path / "shared")
    card = (tmp_path / "shared" / layout.MODEL_CARD).read_text()
    code = re.findall(r"```python\n(.*?)```", card, re.DOTALL)[0].splitlines()
    (pooling,) = re.findall(r"`(pipe\.\S+ = \d+)`", card)
    monkeypatch.setattr(type(pipe), "from_pretrained", lambda *arguments, **options: pipe)
    monkeypatch.chdir(tmp_path / "shared")
    exec("\n".join([*code[:-1], pooling]), {})  # the last line generates an image
    assert same_images(case, pipe, ours, load(tmp_path / "shared"))
