"""gm/sampling/finite.py: an image that is not finite is an error that names it, never a black image."""

from __future__ import annotations

import re
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from gm import api
from gm.config import SamplingConfig
from gm.errors import UserError
from gm.models import stable_diffusion
from gm.runtime.backend import Backend
from gm.sampling import finite, init_image, request
from gm.sampling.cfg_denoiser import CFGDenoiser
from gm.sampling.pipeline import Pipeline
from gm.sampling.vae_decode import VAEDecoder
from tests.project import Workshop
from tests.sampling.generation import PYNATIVE, generate


def spoil_step(monkeypatch: pytest.MonkeyPatch, step: int, seed: int, value: float) -> None:
    """Let the denoiser return `value` somewhere in the image of `seed` in `step`, counted from 0."""
    original = CFGDenoiser.__call__

    def call(self: CFGDenoiser, x: Tensor, sigma: float, number: int) -> Tensor:
        denoised = original(self, x, sigma, number).asnumpy().copy()
        for k, each in enumerate(self.requests):
            if (number, each.seed) == (step, seed):
                denoised[k, 0, 0, 0] = value
        return Tensor(denoised)

    monkeypatch.setattr(CFGDenoiser, "__call__", call)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_the_message_names_image_step_and_way_out(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, batch_size: int, value: float
) -> None:
    spoil_step(monkeypatch, step=1, seed=9, value=value)
    message = 'image 3 of 3 (seed 9, "a green cat") is not finite after step 2 of 3: the weights are finite'
    with pytest.raises(UserError, match=re.escape(message)):
        generate(pipeline, ("a red cat", 7), ("a blue cat", 8), ("a green cat", 9), batch_size=batch_size)
    generate(pipeline, ("a red cat", 7), ("a blue cat", 8), batch_size=batch_size)


def test_the_way_out_of_float16_is_another_precision() -> None:
    latents = Tensor(np.array([0.0, np.nan], np.float32).reshape(2, 1, 1, 1))
    backend = Backend("CPU", graph=False, dtype=ms.float16)
    with pytest.raises(UserError, match=r"b is not finite after step 1 of 2: float16 .*--precision float32"):
        finite.check_latents(latents, ["a", "b"], 1, 2, backend)
    finite.check_latents(latents, ["a"], 1, 2, backend)  # the second fills up a batch


def test_options_beyond_all_limits_are_named(pipeline: Pipeline) -> None:
    with pytest.raises(UserError, match=r"is not finite after step \d of 3: .*lower --guidance_scale"):
        generate(pipeline, ("a cat", 7), guidance_scale=3e38)


@pytest.mark.parametrize("options", [{}, {"vae_slicing": True}, {"vae_tiling": True, "vae_tile_size": 64}])
def test_a_vae_that_overflows_is_an_error_with_the_way_out(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, options: dict[str, object]
) -> None:
    pipeline = Pipeline(workshop.model, PYNATIVE, "end_of_text")
    decode = pipeline.decoder.decode_levels

    def overflow(latents: Tensor) -> Tensor:
        return decode(latents) + Tensor(np.float32(np.inf)) * 0

    monkeypatch.setattr(pipeline.decoder, "decode_levels", overflow)
    message = r"image 1 of 1 \(seed 7, \"a cat\"\) is not finite after the VAE, though .*--vae, such as the fp16 fix"
    with pytest.raises(UserError, match=message):
        generate(pipeline, ("a cat", 7), height=96, width=96, **options)


def test_decoding_without_names_counts(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = VAEDecoder(workshop.model, PYNATIVE)
    levels = np.zeros((2, 3, 8, 8), np.float32)
    levels[1, 0, 0, 0] = np.nan
    monkeypatch.setattr(decoder, "decode_levels", lambda latents: Tensor(levels))
    with pytest.raises(UserError, match=r"^image 2 is not finite after the VAE"):
        decoder.decode(np.zeros((2, 4, 4, 4), np.float32), SamplingConfig())


def test_an_initial_image_that_the_vae_encodes_to_nan_is_named(workshop: Workshop) -> None:
    model = stable_diffusion.build(workshop.config().model)
    for parameter in model.first_stage_model.get_parameters():
        parameter.set_data(Tensor(np.full(parameter.shape, np.nan, np.float32)))
    sampling = SamplingConfig(task="img2img", img=[str(workshop.folder / "images" / "1.png")])
    (initial,) = init_image.load_all(sampling, workshop.config().model)
    with pytest.raises(UserError, match=r"the VAE encodes 1\.png to values that are not finite; .* with --vae"):
        init_image.encode(model, [initial.cropped])


def test_a_vae_of_its_own_replaces_that_of_the_weights(workshop: Workshop, tmp_path: Path) -> None:
    """`--vae` through the API: another image of the same latents."""
    from gm.checkpoints import containers
    from gm.checkpoints.lazy_tensor import in_memory

    prefix = "first_stage_model."
    tensors = containers.read(workshop.config().run.weight).tensors
    vae = {
        name.removeprefix(prefix): in_memory(tensor.read() * np.float32(0.5))
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
    containers.write(tmp_path / "vae.safetensors", vae)
    config = workshop.config(run={"vae": str(tmp_path / "vae.safetensors")})
    model = api.load(config).model
    name = next(iter(vae))
    loaded = {parameter.name: parameter.asnumpy() for parameter in model.get_parameters()}
    assert np.array_equal(loaded[prefix + name], vae[name].read())
    ours, theirs = (generate(Pipeline(m, PYNATIVE, "end_of_text"), ("a <toy>", 7)) for m in (model, workshop.model))
    assert np.array_equal(ours.latents, theirs.latents)
    assert not np.array_equal(ours.images, theirs.images)
    with pytest.raises(UserError, match="--vae nowhere does not exist"):
        api.load(workshop.config(run={"vae": "nowhere"}))


def test_initial_noise_from_a_file_must_be_finite(workshop: Workshop, tmp_path: Path) -> None:
    noise = np.zeros((1, 4, 8, 8), np.float32)
    noise[0, 0, 0, 0] = np.nan
    np.save(tmp_path / "n.npy", noise)
    options = {"init_latent_path": str(tmp_path / "n.npy"), "save_path": str(tmp_path / "out")}
    with pytest.raises(UserError, match=r"--init_latent_path .*n\.npy holds values that are not finite"):
        request.prepare(workshop.config(sampling=options))
