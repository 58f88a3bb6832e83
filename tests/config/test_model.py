"""gm/config/model.py: families of models, and sizes that contradict each other."""

from __future__ import annotations

import dataclasses

import pytest

from gm import config as configuration
from gm.config import cli
from gm.config.model import ModelConfig
from gm.config.networks import TextEncoderConfig
from gm.errors import UserError

CONFIG = "configs/training/sd_v1.5_textual_inversion.yaml"

SD1, SD2_BASE, SD2_V = (
    configuration.load(f"configs/training/{name}_textual_inversion.yaml").model
    for name in ("sd_v1.5", "sd_v2.1_base", "sd_v2.1_768_v")
)


def test_the_families_as_published() -> None:
    assert list(ModelConfig().text_encoders) == ["clip_l", "clip_g"]
    assert list(SD1.text_encoders) == ["clip_l"]
    assert list(SD2_BASE.text_encoders) == list(SD2_V.text_encoders) == ["clip_h"]
    assert [model.resolution for model in (SD1, SD2_BASE, SD2_V)] == [512, 512, 768]
    assert {model.vae.scale_factor for model in (SD1, SD2_BASE, SD2_V)} == {0.18215}
    assert [model.schedule.prediction for model in (SD1, SD2_BASE, SD2_V)] == ["epsilon", "epsilon", "v_prediction"]
    assert [SD1.unet.heads(c) for c in SD1.unet.attention_channels] == [8, 8, 8, 8]
    assert [model.unet.upcast_attention for model in (SD1, SD2_BASE, SD2_V)] == [False, True, True]
    assert [SD2_V.unet.heads(c) for c in SD2_V.unet.attention_channels] == [5, 10, 20, 20]
    for model in (SD1, SD2_BASE, SD2_V):
        assert (model.has_class_embedding, model.zero_unconditional, model.size_embedding_dim) == (False, False, 0)
        assert model.context_length == 77
    assert (ModelConfig().has_class_embedding, ModelConfig().zero_unconditional) == (True, True)


def test_the_refiner_encodes_an_empty_prompt() -> None:
    assert not configuration.load("configs/sampling/sd_xl_refiner.yaml").model.zero_unconditional


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        (SD1, {"kind": "refiner"}, "model.kind is refiner, but Stable Diffusion 1 has none; leave it out, or"),
        (
            SD2_V,
            {"text_encoder_2": TextEncoderConfig(width=32, heads=2)},
            "Stable Diffusion 2 has one text encoder, model.text_encoder_1; leave out model.text_encoder_2",
        ),
        (
            SD2_V,
            {"unet": dataclasses.replace(SD2_V.unet, adm_in_channels=1536)},  # unCLIP's
            "model.unet.adm_in_channels is 1536, but the UNet of Stable Diffusion 2 has no class input; give 0",
        ),
        (
            SD1,
            {"unet": dataclasses.replace(SD1.unet, num_heads=7)},
            r"model.unet.num_heads is 7; it must divide the channels .* \(320, 640, 1280, 1280\)",
        ),
        (
            SD1,
            {"text_encoder_1": TextEncoderConfig(width=1024, heads=16)},
            "model.unet.context_dim is 768, but the text encoder has hidden states of 1024",
        ),
        (
            ModelConfig(),
            {"unet": dataclasses.replace(ModelConfig().unet, adm_in_channels=0)},
            "model.unet.adm_in_channels must be text_encoder_2.width plus 6 size embeddings",
        ),
    ],
)
def test_contradictions_are_named(model: ModelConfig, changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        dataclasses.replace(model, **changes)


def test_an_unknown_family_is_named() -> None:
    with pytest.raises(UserError, match=r"model.family is 'sd3'; it may be 'sdxl', 'sd1', 'sd2'"):
        configuration.load(None, {"model": {"family": "sd3"}})


@pytest.mark.parametrize(("family", "rule"), [("sdxl", "argmax"), ("sd1", "end_of_text")])
def test_only_sdxl_has_a_pooling_rule(family: str, rule: str) -> None:
    unet = {"context_dim": 768, "adm_in_channels": 0} if family == "sd1" else {}
    sections = {"model": {"family": family, "unet": unet}, "run": {"pooling": "argmax"}}
    assert configuration.load(None, sections).run.pooling == rule


def test_clip_skip_is_an_option_of_stable_diffusion() -> None:
    sd1 = {"family": "sd1", "unet": {"context_dim": 768, "adm_in_channels": 0}}
    for clip_skip, layers in ((1, 12), (2, 11), (12, 1)):
        model = configuration.load(None, {"model": {**sd1, "text_encoder_1": {"clip_skip": clip_skip}}}).model
        assert model.text_encoder_1.layers_run == layers
    with pytest.raises(
        UserError, match=r"text_encoder_1.clip_skip\) is 13; it must be at most 12, the encoder's layers"
    ):
        configuration.load(None, {"model": {**sd1, "text_encoder_1": {"clip_skip": 13}}})
    with pytest.raises(UserError, match=r"clip_skip\) is 2, but SDXL always takes the layer before"):
        configuration.load(None, {"model": {"text_encoder_1": {"clip_skip": 2}}})


@pytest.mark.parametrize("sections", [("run", "sampling"), ("run", "concept", "training")])
def test_clip_skip_has_a_flag(sections: tuple[str, ...]) -> None:
    config = cli.parse("", sections, ["--config", CONFIG, "--clip_skip", "2"])
    assert config.model.text_encoder_1.clip_skip == 2
    chosen = CONFIG, {"model": {"schedule": {"beta_end": 0.013}}}
    config = cli.parse("", sections, ["--weight", "a.ckpt", "--clip_skip", "2"], config_for=lambda weight: chosen)
    assert (config.model.text_encoder_1.clip_skip, config.model.schedule.beta_end) == (2, 0.013)
