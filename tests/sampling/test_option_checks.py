"""Sampling options that do nothing beside others are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gm import config as configuration
from gm.sampling import option_checks, request
from tests.project import Workshop

ROOT = Path(__file__).resolve().parents[2]


def sentences(**sampling: Any) -> list[str]:
    return list(option_checks.ineffective_options(configuration.load(None, {"sampling": sampling})))


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "training").glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_configs_have_no_such_option(path: Path) -> None:
    assert list(option_checks.ineffective_options(configuration.load(path))) == []


@pytest.mark.parametrize(
    ("name", "value", "needs", "reader"),
    [
        ("sigma_min", 0.1, "--schedule edm", {"schedule": "edm"}),
        ("sigma_max", 10.0, "--schedule edm", {"schedule": "EDMDiscretization"}),
        ("rho", 7.0, "--schedule edm", {"schedule": "edm"}),
        (
            "eta",
            0.5,
            "a sampler of euler_ancestral, dpmpp_2s_ancestral, dpmpp_2m_sde",
            {"sampler": "DPM++ 2M SDE"},
        ),
        ("s_noise", 1.1, "a sampler that adds noise", {"sampler": "lcm"}),
        ("s_noise", 1.1, "a sampler that adds noise", {"sampler": "heun", "s_churn": 1.0}),
        ("s_tmin", 0.5, "--s_churn", {"s_churn": 1.0}),
        ("s_tmax", 5.0, "--s_churn", {"s_churn": 1.0}),
        ("guidance_rescale", 0.5, "--guider rescaled", {"guider": "rescaled"}),
        ("strength", 0.5, "--task img2img or inpaint", {"task": "img2img"}),
        ("stage2strength", 0.5, "--add_pipeline", {"add_pipeline": True}),
        ("pipeline_weight", "a.ckpt", "--add_pipeline", {"add_pipeline": True}),
        ("aesthetic_score", 7.0, "--add_pipeline", {"add_pipeline": True}),
        ("vae_tile_size", 512, "--vae_tiling", {"vae_tiling": True}),
        ("init_latent_index", 2, "--init_latent_path", {"init_latent_path": "a.npy"}),
    ],
)
def test_option_without_the_one_that_reads_it(name: str, value: Any, needs: str, reader: dict[str, Any]) -> None:
    assert sentences(**{name: value}) == [f"--{name} {value} has no effect without {needs}"]
    assert sentences(**{name: value}, **reader) == []


def test_noise_of_a_sampler_that_adds_none() -> None:
    assert sentences(sampler="dpmpp_2m", s_churn=2.0) == ["--s_churn 2.0 has no effect without --sampler euler or heun"]
    assert sentences(s_churn=2.0, s_tmin=3.0, s_tmax=1.0) == ["--s_churn 2 has no effect: --s_tmin is above --s_tmax"]
    assert sentences(sampler="euler_ancestral", eta=0.0, s_noise=1.1) == [
        "--s_noise 1.1 has no effect without a sampler that adds noise"
    ]


def test_a_negative_prompt_that_no_guidance_reads() -> None:
    assert sentences(negative_prompt="blurry") == []
    assert sentences(negative_prompt="blurry", guider="IdentityGuider") == [
        "--negative_prompt has no effect with --guider none"
    ]
    assert sentences(negative_prompt="blurry", guidance_scale=1) == [
        "--negative_prompt has no effect with --guidance_scale 1"
    ]


def test_a_request_logs_them(workshop: Workshop, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    sampling = {"prompt": "a cat", "save_path": str(tmp_path), "vae_tile_size": 64, "sampler": "euler"}
    request.prepare(workshop.config(sampling=sampling))
    assert caplog.messages == ["--vae_tile_size 64 has no effect without --vae_tiling"]
