"""Options of the training loss: loss section of `Config`."""

from __future__ import annotations

from dataclasses import dataclass

from gm.config.schema import Section, option


@dataclass(frozen=True)
class LossConfig(Section):
    """Training loss."""

    loss_type: str = option("l2", "squared error or pseudo-Huber loss", choices=("l2", "huber"))
    huber_c: float = option(
        0.1, "error at which the pseudo-Huber loss turns from quadratic to linear", minimum=1e-6, maximum=1e6
    )
    min_snr_gamma: float = option(
        0.0,
        "gamma of min-SNR loss weighting (5 is usual); 0 disables it",
        minimum=0.0,
        aliases=("snr_gamma",),
        maximum=1e6,
    )
    noise_offset: float = option(
        0.0, "standard deviation of an offset added to each channel of the noise", minimum=0.0, maximum=100.0
    )
    min_timestep: int = option(0, "lowest timestep of training", minimum=0, maximum=100_000)
    max_timestep: int | None = option(
        None, "highest timestep of training; default: the last of the model", minimum=0, maximum=100_000
    )
    timestep_bias: float = option(
        0.0,
        "above 0 samples high timesteps more often, below 0 low ones; 0 is uniform",
        minimum=-1000.0,
        maximum=1000.0,
    )
    negative_guidance: float = option(
        3.0,
        "guidance scale at which a negative concept is trained together with the others",
        minimum=1.0,
        maximum=1000.0,
    )
    scale_v_pred_loss_like_noise_pred: bool = option(
        False, "weight the loss of v by SNR / (SNR + 1), as much as the noise that it implies; for v_prediction"
    )
    debiased_estimation_loss: bool = option(
        False, "debiased weights of the timesteps: 1 / SNR^0.5, for v_prediction 1 / (SNR + 1)"
    )
    context_loss_weight: float = option(
        0.0,
        "weight of the context loss, which keeps the hidden states of the tokens behind the placeholder token, in "
        "prompts without images, close to those behind the class word",
        minimum=0.0,
        maximum=1e6,
    )
    context_prompt_file: str | None = option(
        None, "text file of the prompts of the context loss, one per line, {} for the placeholder token", path="path"
    )
    context_encoders: str = option(
        "all", "text encoders of the context loss", choices=("all", "clip_l", "clip_g", "clip_h")
    )
    initializer_reg_weight: float = option(
        0.0,
        "weight of the distance from the initial vectors; cross initialization is published with 1e-5",
        minimum=0.0,
        maximum=1e6,
    )
