"""Options of sampling that are allowed alone and do nothing together; each is a warning."""

from __future__ import annotations

from collections.abc import Iterator

from gm.config import Config, SamplingConfig
from gm.config.unused import Rule, messages
from gm.diffusion import guidance, samplers, schedule

_CHURNING = ("euler", "heun")
_STOCHASTIC = ("euler_ancestral", "dpmpp_2s_ancestral", "dpmpp_2m_sde")  # those that read eta


def _sampler(config: Config) -> str:
    return samplers.resolve_name(config.sampling.sampler)


def _adds_noise(config: Config) -> bool:
    name = _sampler(config)
    churns = name in _CHURNING and config.sampling.s_churn > 0
    samples_noise = (name in _STOCHASTIC and config.sampling.eta > 0) or (
        name == "ddim" and config.sampling.ddim_eta > 0
    )
    return name == "lcm" or churns or samples_noise


_RULES = (
    Rule(
        "sampling",
        ("sigma_min", "sigma_max", "rho"),
        "--schedule edm",
        lambda config: schedule.resolve_name(config.sampling.schedule) == "edm",
    ),
    Rule(
        "sampling", ("eta",), f"a sampler of {', '.join(_STOCHASTIC)}", lambda config: _sampler(config) in _STOCHASTIC
    ),
    Rule("sampling", ("ddim_eta",), "--sampler ddim", lambda config: _sampler(config) == "ddim"),
    Rule("sampling", ("s_noise",), "a sampler that adds noise", _adds_noise),
    Rule("sampling", ("s_churn",), f"--sampler {' or '.join(_CHURNING)}", lambda config: _sampler(config) in _CHURNING),
    Rule("sampling", ("s_tmin", "s_tmax"), "--s_churn", lambda config: config.sampling.s_churn > 0),
    Rule(
        "sampling",
        ("guidance_rescale",),
        "--guider rescaled",
        lambda config: guidance.resolve_name(config.sampling.guider) == "rescaled",
    ),
    Rule("sampling", ("strength",), "--task img2img or inpaint", lambda config: config.sampling.task != "txt2img"),
    Rule(
        "sampling",
        ("pipeline_config", "pipeline_weight", "stage2strength", "aesthetic_score", "negative_aesthetic_score"),
        "--add_pipeline",
        lambda config: config.sampling.add_pipeline,
    ),
    Rule(
        "sampling",
        ("embedding_adjust", "embedding_class_word"),
        "--textual_inversion_weight",
        lambda config: bool(config.sampling.textual_inversion_weight),
    ),
    Rule("sampling", ("vae_tile_size",), "--vae_tiling", lambda config: config.sampling.vae_tiling),
    Rule(
        "sampling",
        ("init_latent_index",),
        "--init_latent_path",
        lambda config: config.sampling.init_latent_path is not None,
    ),
)


def ineffective_options(config: Config) -> Iterator[str]:
    """Yield a sentence for each option that has no effect beside the others."""
    yield from messages(config, _RULES)
    yield from _guidance(config.sampling)
    if config.sampling.s_churn > 0 and config.sampling.s_tmin > config.sampling.s_tmax:
        yield f"--s_churn {config.sampling.s_churn:g} has no effect: --s_tmin is above --s_tmax"


def _guidance(sampling: SamplingConfig) -> Iterator[str]:
    if not sampling.negative_prompt.strip():
        return
    if guidance.resolve_name(sampling.guider) == "none":
        yield "--negative_prompt has no effect with --guider none"
    elif sampling.guidance_scale == 1:
        yield "--negative_prompt has no effect with --guidance_scale 1"
