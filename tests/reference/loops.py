"""Textual inversion and guided Euler sampling in PyTorch, with PyTorch's optimizer and diffusers' scheduler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler, EulerDiscreteScheduler
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import rescale_noise_cfg
from torch import Tensor

from gm.config.model import ModelConfig
from tests.reference.inputs import Batch, Prompts
from tests.reference.networks import Reference, tensor


@dataclass(frozen=True)
class Trained:
    """Course of `torch_training`: a loss a step; a gradient norm (before clipping) and the vectors of each update."""

    losses: np.ndarray
    norms: np.ndarray
    clip_l: np.ndarray
    clip_g: np.ndarray


def scheduler(config: ModelConfig) -> EulerDiscreteScheduler:
    """Return diffusers' Euler scheduler for the model's noise schedule."""
    schedule = config.schedule
    return EulerDiscreteScheduler(
        num_train_timesteps=schedule.timesteps,
        beta_start=schedule.beta_start,
        beta_end=schedule.beta_end,
        beta_schedule="scaled_linear",
        prediction_type="epsilon",
        timestep_spacing="leading",  # timesteps are set explicitly; this makes init_noise_sigma (1 + σ²)^½
    )


def beta_options(config: ModelConfig) -> dict[str, Any]:
    """Return what diffusers' schedulers are told of the model: its betas and what it predicts."""
    schedule = config.schedule
    options = {
        "num_train_timesteps": schedule.timesteps,
        "beta_start": schedule.beta_start,
        "beta_end": schedule.beta_end,
        "beta_schedule": "scaled_linear",
        "prediction_type": schedule.prediction,
    }
    return options | ({"rescale_betas_zero_snr": True} if schedule.rescale_betas_zero_snr else {})


def diffusion_loss(reference: Reference, clip_l: Any, clip_g: Any, batch: Batch) -> Tensor:
    """Return the mean squared error of one batch, of the noise or of v, as a function of the embedding vectors."""
    config, prompts = reference.config, batch.prompts
    noise_scheduler = DDPMScheduler(**beta_options(config))
    deviation = torch.exp(0.5 * tensor(batch.log_variance))
    latents = (tensor(batch.mean) + deviation * tensor(batch.posterior_noise)) * config.vae.scale_factor
    noisy, target = noised(noise_scheduler, latents, tensor(batch.noise), tensor(batch.timestep).long())
    context, pooled = reference.condition(prompts.ids_1, prompts.ids_2, prompts.pool_position, clip_l, clip_g)
    output = reference.epsilon(noisy, batch.timestep, context, pooled, prompts.sizes)
    return torch.nn.functional.mse_loss(output, target)


def noised(noise_scheduler: DDPMScheduler, latents: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """Return the noisy latents of a training step, and the target: the noise or v."""
    noisy = noise_scheduler.add_noise(latents, noise, timesteps)
    is_v = noise_scheduler.config.prediction_type == "v_prediction"
    return noisy, noise_scheduler.get_velocity(latents, noise, timesteps) if is_v else noise


def loss_and_gradient(reference: Reference, batch: Batch) -> tuple[float, np.ndarray, np.ndarray]:
    """Return the diffusion loss at the prompts' embedding vectors, and its gradient with respect to each encoder's."""
    vectors = [tensor(each).clone().requires_grad_() for each in (batch.prompts.clip_l, batch.prompts.clip_g)]
    loss = diffusion_loss(reference, *vectors, batch)
    gradients = torch.autograd.grad(loss, vectors, allow_unused=True, materialize_grads=True)
    return loss.item(), gradients[0].numpy(), gradients[1].numpy()


def torch_training(
    reference: Reference,
    clip_l: np.ndarray,
    clip_g: np.ndarray,
    batches: Sequence[Batch],
    *,
    accumulation: int,
    learning_rates: Sequence[float],
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    max_grad_norm: float = 1.0,
    weight_decay: float = 0.0,
) -> Trained:
    """Train the embedding vectors on `batches`, one a step, and update them after every `accumulation` steps.

    There is one learning rate an update. The gradient is the mean over the steps of an update, clipped by the norm
    over both encoders' vectors (`max_grad_norm` 0 never clips). The vectors in the batches' prompts are not used.
    """
    assert len(batches) == accumulation * len(learning_rates)
    vectors = [torch.from_numpy(np.array(each, np.float32)).requires_grad_() for each in (clip_l, clip_g)]
    optimizer = torch.optim.AdamW(vectors, betas=betas, eps=eps, weight_decay=weight_decay)
    losses, norms, trained = [], [], []
    for update, rate in enumerate(learning_rates):
        optimizer.zero_grad()
        for batch in batches[update * accumulation : (update + 1) * accumulation]:
            loss = diffusion_loss(reference, *vectors, batch)
            (loss / accumulation).backward()
            losses.append(loss.item())
        norms.append(torch.nn.utils.clip_grad_norm_(vectors, max_grad_norm or float("inf")).item())
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        trained.append([each.detach().numpy().copy() for each in vectors])
    return Trained(np.array(losses), np.array(norms), *(np.stack(each) for each in zip(*trained, strict=True)))


@torch.no_grad()
def torch_euler(
    reference: Reference,
    noise: np.ndarray,
    prompts: Prompts,
    negative: Prompts | None,
    *,
    steps: int = 20,
    guidance_scale: float = 5.0,
) -> np.ndarray:
    """Return the latents [steps, N, z, h, w] after each step of guided Euler sampling, still scaled.

    noise [N, z, h, w] is standard normal. Without `negative` (the empty negative prompt) the unconditional side's
    context and pooled vector are zero. Both sides have the size conditioning of `prompts`.
    """
    euler = scheduler(reference.config)
    last = reference.config.schedule.timesteps - 1
    euler.set_timesteps(timesteps=np.floor(np.linspace(last, 0, steps, endpoint=False)).astype(int).tolist())
    context, pooled = _condition(reference, prompts)
    if negative is None:
        negative_context, negative_pooled = torch.zeros_like(context), torch.zeros_like(pooled)
    else:
        negative_context, negative_pooled = _condition(reference, negative)
    x, trace = tensor(noise) * euler.init_noise_sigma, []
    for timestep in euler.timesteps:
        model_input = euler.scale_model_input(x, timestep)
        timesteps = timestep.expand(len(x))
        conditional = reference.epsilon(model_input, timesteps, context, pooled, prompts.sizes)
        unconditional = reference.epsilon(model_input, timesteps, negative_context, negative_pooled, prompts.sizes)
        x = euler.step(unconditional + guidance_scale * (conditional - unconditional), timestep, x).prev_sample
        trace.append(x.numpy().copy())
    return np.stack(trace)


@torch.no_grad()
def torch_sampling(
    reference: Reference, sampler: Any, noise: np.ndarray, prompts: Prompts, *, guidance_scale: float, rescale: float
) -> np.ndarray:
    """Return the latents [N, z, h, w] that diffusers' scheduler `sampler`, its timesteps set, makes of the noise.

    noise [N, z, h, w] is standard normal; the unconditional side is zeros.
    """
    context, pooled = _condition(reference, prompts)
    x = tensor(noise) * sampler.init_noise_sigma
    for timestep in sampler.timesteps:
        model_input = sampler.scale_model_input(x, timestep)
        timesteps = timestep.expand(len(x))
        conditional = reference.epsilon(model_input, timesteps, context, pooled, prompts.sizes)
        unconditional = reference.epsilon(model_input, timesteps, 0 * context, 0 * pooled, prompts.sizes)
        guided = unconditional + guidance_scale * (conditional - unconditional)
        x = sampler.step(rescale_noise_cfg(guided, conditional, rescale), timestep, x).prev_sample
    return x.numpy()


def torch_denoiser(
    reference: Reference, prompts: Prompts, negative: Prompts | None, guidance_scale: float, rescale: float = 0.0
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the denoiser that k-diffusion calls: noisy latents [N, z, h, w] and their noise level [N] → denoised.

    Without `negative` the unconditional side is zeros. Guidance is rescaled by diffusers' function.
    """
    context, pooled = _condition(reference, prompts)
    unconditioned = (0 * context, 0 * pooled) if negative is None else _condition(reference, negative)
    alphas = scheduler(reference.config).alphas_cumprod.double().numpy()
    log_sigmas = 0.5 * np.log((1 - alphas) / alphas)

    @torch.no_grad()
    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        level = sigma[0].item()
        model_input = x / (level**2 + 1) ** 0.5
        timestep = np.interp(np.log(level), log_sigmas, np.arange(len(log_sigmas)))
        timesteps = torch.tensor([timestep] * len(x)).float()
        conditional = reference.epsilon(model_input, timesteps, context, pooled, prompts.sizes)
        unconditional = reference.epsilon(model_input, timesteps, *unconditioned, (negative or prompts).sizes)
        guided = unconditional + guidance_scale * (conditional - unconditional)
        return x - level * rescale_noise_cfg(guided, conditional, rescale)

    return denoise


def _condition(reference: Reference, prompts: Prompts) -> tuple[Tensor, Tensor]:
    if reference.text_encoder_1 is None:  # a refiner's
        return reference.encode_text_2(prompts.ids_2, prompts.clip_g, prompts.pool_position)
    return reference.condition(prompts.ids_1, prompts.ids_2, prompts.pool_position, prompts.clip_l, prompts.clip_g)
