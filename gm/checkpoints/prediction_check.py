"""Check of a loaded UNet's prediction, by one run: a wrong setting gives noise or gray instead of images.

No tensor says whether a UNet predicts ε or v. At the last timestep its input is noise almost alone (a² = 0.0047), so
that ε is the input itself, and v = a·ε - s·x₀ holds 0.068 times as much of it. AUTOMATIC1111 tells the models of Stable
Diffusion 2 apart in this way (`is_using_v_parameterization_for_sd2` in modules/sd_models_config.py). A UNet with random
weights has nothing of its input either; therefore a second input has latents 0 and the noise of σ ≈ 1, where ε and v
both are proportional to the noise: a trained UNet of either kind finds it.
"""

from __future__ import annotations

import logging

import numpy as np
from mindspore import Tensor

from gm.config.model import ModelConfig
from gm.diffusion import schedule
from gm.errors import UserError, shorten
from gm.models.stable_diffusion import StableDiffusion
from gm.runtime import rng

log = logging.getLogger("gm")

_SIDE = 16  # latents; of a whole number of pixels at every level of the UNet
_CORRELATED = 0.7  # of the output with the noise at σ ≈ 1; less has a UNet that is not trained
_HIGH, _LOW = 0.6, 0.3  # shares of the noise in the output at the last timestep: 1 for ε, 0.068 or less for v


def check_prediction(model: StableDiffusion, source: str) -> None:
    """Raise UserError if the UNet of `model`, loaded from `source`, does not predict what its config says.

    It runs the UNet once, in PyNative mode, on two small latents. A UNet whose outputs fit neither kind, such as one
    that is not trained, and a refiner, which is trained on the last steps only, pass.
    """
    config = model.config
    if config.is_refiner:
        return
    try:
        detected = detect_prediction(model)
    except RuntimeError as error:  # MindSpore's, of a device's operators or memory: a check must not end what works
        log.warning("what %s predicts was not checked: %s", source, shorten(error))
        return
    if detected in ("", config.schedule.prediction):
        return
    names = {"epsilon": "epsilon, the noise", "v_prediction": "v, the velocity"}
    raise UserError(
        f"{source} predicts {names[detected]}, but the config describes a model that predicts "
        f"{names[config.schedule.prediction]}: images would be spoilt; give a --config with model.schedule.prediction "
        f"{detected}{_zero_snr(config, detected)}"
    )


def detect_prediction(model: StableDiffusion) -> str:
    """Return "epsilon" or "v_prediction", or "" if the outputs of the UNet fit neither."""
    share, correlation = noise_in_output(model)
    log.debug(
        "noise in the UNet's output: %.3f of it at the last timestep, correlation %.3f at σ = 1", share, correlation
    )
    if not correlation > _CORRELATED:
        return ""
    if share > _HIGH:
        return "epsilon"
    return "v_prediction" if share < _LOW else ""


def noise_in_output(model: StableDiffusion) -> tuple[float, float]:
    """Return the share of its noise in the UNet's output at the last timestep, and their correlation at σ ≈ 1.

    The share is the slope of the regression of the output on the noise.
    """
    config = model.config
    sigmas = schedule.training_sigmas(config.schedule)
    middle = int(np.abs(np.log(sigmas)).argmin())
    noise = rng.normal((2, config.unet.in_channels, _SIDE, _SIDE), 0, "prediction check")
    scale = np.array([1.0, (sigmas[middle] ** 2 / (sigmas[middle] ** 2 + 1)) ** 0.5], np.float32)
    x = Tensor(noise * scale[:, None, None, None])
    timesteps = Tensor(np.array([len(sigmas) - 1, middle], np.float32))
    context = Tensor(np.zeros((2, config.context_length, config.unet.context_dim), np.float32))
    output = model.unet(x, timesteps, context, _class_embedding(model)).asnumpy()
    share = float((output[0] * noise[0]).mean() / (noise[0] ** 2).mean())
    with np.errstate(invalid="ignore", divide="ignore"):  # a constant output has no correlation
        return share, float(np.corrcoef(output[1].ravel(), noise[1].ravel())[0, 1])


def _class_embedding(model: StableDiffusion) -> Tensor | None:
    """Return y [2, V] of an empty text and an uncropped image, None for a UNet without class input."""
    config = model.config
    embed = model.conditioner.vector_embedding if config.has_class_embedding else None
    if embed is None:
        return None
    side = config.resolution
    sizes = np.array([[side, side, 0, 0, side, side]] * 2, np.float32)
    pooled = np.zeros((2, config.text_encoders["clip_g"].width), np.float32)
    return embed(Tensor(pooled), Tensor(sizes))


def _zero_snr(config: ModelConfig, detected: str) -> str:
    """Return what else the config must say, because zero terminal SNR is for v-prediction alone."""
    has_it = config.schedule.rescale_betas_zero_snr and detected == "epsilon"
    return " and without model.schedule.rescale_betas_zero_snr" if has_it else ""
