"""Sampling with Stable Diffusion 1 and 2 beside diffusers' StableDiffusionPipeline on the same networks."""

from __future__ import annotations

import dataclasses

import mindspore as ms
import numpy as np
import pytest

from gm.config import RunConfig, SamplingConfig
from gm.embeddings import io as embedding_io
from gm.embeddings.embedding import NO_POOLING, Embedding, combine
from gm.errors import UserError
from gm.runtime.backend import Backend
from gm.sampling import metadata, request
from gm.sampling.pipeline import Pipeline
from tests.reference.configs import LIKE_SD1, LIKE_SD2
from tests.reference.inputs import normal, relative_error
from tests.sampling.generation import PYNATIVE, image_request

TEXTS = ("a <cat> in the snow", "portrait of <cat>, oil on canvas")
MODELS = pytest.mark.parametrize("model", [LIKE_SD1, LIKE_SD2], ids=lambda model: model.version)


def embedding_of(model):
    ((name, encoder),) = model.text_encoders.items()
    return Embedding("<cat>", {name: 0.02 * normal(90, 2, encoder.width)}, NO_POOLING)


def generate(case, backend, **options):
    """Return our latents of both texts [2, z, h, w], from the noise of `normal`."""
    embeddings = combine([embedding_of(case.config)], case.config)
    sampling = SamplingConfig(batch_size=2, height=64, width=64, **options)
    noise = normal(91, 2, 4, 8, 8)
    requests = [
        image_request(text, number, case.config, embeddings, sampling, noise=noise[number])
        for number, text in enumerate(TEXTS)
    ]
    *_, last = Pipeline(case.model, backend, "end_of_text").generate(requests, embeddings, sampling)
    return last.latents


def generate_by_diffusers(case, folder, *, steps, guidance_scale, negative_prompt):
    """Return the latents of diffusers' pipeline, which loads the embedding from the file that we write."""
    import torch

    from tests.reference import pipeline as reference_pipeline

    pipe = reference_pipeline.diffusers_pipeline(case.reference, folder)
    table = pipe.text_encoder.get_input_embeddings().weight.detach().clone()  # the loader appends to it in place
    embedding_io.save(embedding_of(case.config), folder / "cat.safetensors")
    pipe.load_textual_inversion(str(folder / "cat.safetensors"), token="<cat>")
    last = case.config.schedule.timesteps - 1
    try:
        with torch.no_grad():
            return pipe(
                prompt=list(TEXTS),
                negative_prompt=[negative_prompt] * 2,
                timesteps=np.floor(np.linspace(last, 0, steps, endpoint=False)).astype(int).tolist(),
                guidance_scale=guidance_scale,
                latents=torch.from_numpy(normal(91, 2, 4, 8, 8)),
                height=64,
                width=64,
                output_type="latent",
            ).images.numpy()
    finally:  # the session's networks are shared
        embeddings = torch.nn.Embedding.from_pretrained(table, freeze=True)
        pipe.text_encoder.set_input_embeddings(embeddings)


@pytest.mark.reference
@pytest.mark.parametrize(
    ("name", "negative", "graph"),
    [
        ("like-sd1", "", False),
        ("like-sd1", "blurry, ugly", False),
        pytest.param("like-sd1", "", True, marks=pytest.mark.graph),
        ("like-sd2", "", False),
    ],
)
def test_twenty_steps_equal_diffusers(name, negative, graph, cases, tmp_path):
    case = cases(name)
    options = {"guidance_scale": 7.5, "negative_prompt": negative}
    ours = generate(case, Backend("CPU", graph, ms.float32), sample_step=20, **options)
    expected = generate_by_diffusers(case, tmp_path, steps=20, **options)
    assert relative_error(ours, expected) < 1e-4


def test_an_empty_negative_prompt_is_encoded(cases):
    """And not zeros, as SDXL's: guidance against the same prompt as text is the same."""
    case = cases("like-sd2")
    images = [generate(case, PYNATIVE, sample_step=2, negative_prompt=text) for text in ("", "  ")]
    np.testing.assert_array_equal(*images)


@MODELS
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"sd_xl_base_ratios": "1.0"},
            r"--sd_xl_base_ratios 1.0 is for SDXL, and .* Stable Diffusion \d; give --height",
        ),
        ({"orig_height": 512}, "--orig_height 512 is for SDXL, .*; its UNet takes no sizes: leave it out"),
        ({"target_width": 512}, "--target_width 512 is for SDXL"),
        ({"crop_coords_top": 8}, "--crop_coords_top 8 is for SDXL"),
        ({"add_pipeline": True}, "--add_pipeline True is for SDXL, .*; it has no refiner: leave it out"),
    ],
)
def test_options_of_sdxl_are_refused(model, options, message):
    with pytest.raises(UserError, match=message):
        request.check(model, SamplingConfig(**options))


@MODELS
def test_no_pooling_rule_is_asked_for_recorded_or_warned_about(model, tmp_path, caplog):
    from gm.config import Config

    embedding_io.save(embedding_of(model), tmp_path / "cat.ckpt")
    sampling = SamplingConfig(
        prompt=TEXTS[0], textual_inversion_weight=[str(tmp_path / "cat.ckpt")], save_path=str(tmp_path / "outputs")
    )
    config = Config(model=model, run=RunConfig(pooling="end_of_text"), sampling=sampling)
    job = request.prepare(config)
    assert caplog.messages == []
    (parameters,) = metadata.generation_parameters(job.config, job.grids[0], "f" * 16)
    assert "pooling" not in parameters
    assert parameters["model"]["family"] == model.family
    request.prepare(dataclasses.replace(config, run=RunConfig(pooling="argmax")))
    assert caplog.messages == []
