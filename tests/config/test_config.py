"""Options: merging, limits, errors; and that code reads every option."""

import dataclasses
import re
import shlex
from pathlib import Path

import pytest

from gm import config as configuration
from gm.config import Config, cli
from gm.config.model import ModelConfig
from gm.config.networks import TextEncoderConfig
from gm.errors import UserError
from tests.config.refusal import refusal

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted((ROOT / "configs").rglob("*.yaml"))
COMMANDS = {
    "train_textual_inversion.py": ("training", ("run", "concept", "data", "training", "loss")),
    "demo/sampling_without_streamlit.py": ("sampling", ("run", "sampling")),
}


def test_defaults_are_sdxl_base() -> None:
    model = configuration.load().model
    assert (model.unet.context_dim, model.unet.adm_in_channels, model.size_embedding_dim) == (2048, 2816, 256)
    assert model.vae.downsample_factor == 8


def test_refiner_config_describes_the_refiner() -> None:
    base, refiner = Config().model, configuration.load(ROOT / "configs" / "sampling" / "sd_xl_refiner.yaml").model
    assert (refiner.kind, refiner.is_refiner) == ("refiner", True)
    assert (refiner.num_size_values, refiner.size_embedding_dim) == (5, 256)
    assert (base.kind, base.is_refiner, base.num_size_values) == ("base", False, 6)
    assert (refiner.unet.middle_depth, base.unet.middle_depth) == (4, 10)
    assert refiner.text_encoder_2 == base.text_encoder_2
    assert refiner.vae == base.vae
    assert refiner.schedule == base.schedule


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.name)
def test_every_shipped_config_loads_and_starts_with_its_command(path: Path) -> None:
    configuration.load(path)
    head = re.match(r"(#.*\n)+", path.read_text())
    assert head
    lines = head[0].replace("\\\n#", "").splitlines()
    (command,) = (line.removeprefix("#").strip() for line in lines if " python " in line)
    script, *arguments = shlex.split(command)[1:]
    place, sections = COMMANDS[script]
    assert path.parent.name == place
    cli.parse("", sections, arguments)


def test_command_line_beats_yaml_beats_default(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("training: {total_step: 7, seed: 8}\n")
    config = configuration.load(path, {"training": {"seed": "9"}})
    assert (config.training.total_step, config.training.seed, config.training.log_interval) == (7, 9, 1)


def test_saved_config_loads_back_equal(tmp_path: Path) -> None:
    config = configuration.load(SHIPPED[-1], {"sampling": {"prompt": "a ${cat} for $5", "negative_prompt": "grün"}})
    configuration.save(config, tmp_path / "c.yaml")
    assert configuration.load(tmp_path / "c.yaml") == config
    assert config.sampling.prompt == "a ${cat} for $5"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trainin: {seed: 1}", "unknown option trainin; did you mean 'training'?"),
        ("training: {total_steps: 1}", "unknown option training.total_steps; did you mean 'total_step'?"),
        ("training: {seed: cat}", "training.seed: Value 'cat' of type 'str' could not be converted to Integer"),
        ("training: {infer_during_train: maybe}", "training.infer_during_train: Value 'maybe' is not a valid bool"),
        ("training: [1]", "list is not a subclass of TrainingConfig"),
        ("training: {total_step: 0}", "training.total_step is 0; it must be at least 1"),
        ("loss: {timestep_bias: nan}", "loss.timestep_bias is not a number (nan); give one"),
        ("training: {learning_rate: .nan}", "training.learning_rate is not a number (nan); give one"),
        ("run: {ms_mode: 2}", "run.ms_mode is 2; it may be 0, 1"),
        ("concept: {learnable_property: stile}", "it may be 'object', 'style', 'face'; did you mean 'style'?"),
        ("data: {resolution: 100}", "data.resolution is 100; it must be a multiple of 8"),
        ("- 1", "must hold the sections model, run"),
        ("a: [", "is not YAML"),
        ("model: {unet: {context_dim: 2000}}", "is 2000, but the two text encoders have hidden states of 2048"),
        ("model: {unet: {transformer_depth: [1]}}", "need one entry per level each"),
        ("model: {unet: {adm_in_channels: 2815}}", "text_encoder_2.width plus 6 size embeddings of equal width"),
        ("model: {kind: refiner}", "context_dim is 2048, but the refiner's text_encoder_2 has hidden states of 1280"),
        (
            "model: {kind: refiner, unet: {context_dim: 1280, adm_in_channels: 2816}}",
            "text_encoder_2.width plus 5 size embeddings of equal width",
        ),
        ("model: {kind: refine, unet: {context_dim: 1280}}", "model.kind is 'refine'; it may be 'base', 'refiner'"),
        (
            "model: {unet: {transformer_depth_middle: -1}}",
            "model.unet.transformer_depth_middle is -1; it must be at least 0",
        ),
    ],
)
def test_user_errors_name_the_option(text: str, message: str, tmp_path: Path) -> None:
    refused = refusal(text, tmp_path)
    assert message in refused


def test_missing_file_is_named() -> None:
    with pytest.raises(UserError, match=r"nowhere.yaml is not a file; the shipped configs are in configs/training/"):
        configuration.load("nowhere.yaml")


def test_encoder_widths_must_match_the_unet() -> None:
    with pytest.raises(UserError, match="context_dim is 2048, but the two text encoders have hidden states of 1792"):
        ModelConfig(text_encoder_1=TextEncoderConfig(width=512, heads=8))


def test_require_refuses_the_other_kind_of_model() -> None:
    base, refiner = Config().model, configuration.load(ROOT / "configs" / "sampling" / "sd_xl_refiner.yaml").model
    base.require("base")
    refiner.require("refiner")
    with pytest.raises(UserError, match=r"SD-XL-refiner-1\.0 is a refiner.*--config and --weight.*--pipeline_config"):
        refiner.require("base")
    with pytest.raises(UserError, match=r"SD-XL-base-1\.0 is a base model; give a refiner, .*--pipeline_config and"):
        base.require("refiner")


def test_every_option_is_documented_and_read() -> None:
    """An option that nothing reads is a bug: each name must occur as an attribute outside the sections."""
    sections = [ROOT / "gm" / "config" / f"{name}.py" for name in ("config", "run", "sampling")]
    names = [path for place in ("gm", "tools") for path in (ROOT / place).rglob("*.py")]
    code = "\n".join(path.read_text() for path in names if path not in sections)
    for section in dataclasses.fields(Config):
        if section.name == "concepts":
            continue  # a list of `concept` sections
        for option in _options(getattr(Config(), section.name)):
            assert option.metadata["doc"], option.name
            assert re.search(rf"\.{option.name}\b", code), f"nothing reads {section.name}.{option.name}"


def _options(section: object) -> list[dataclasses.Field]:
    found = []
    for field in dataclasses.fields(section):  # type: ignore[arg-type]
        value = getattr(section, field.name)
        found += _options(value) if dataclasses.is_dataclass(value) else [field]
    return found


@pytest.mark.parametrize("name", ["sd_xl_base", "sdxl_v_prediction"])
def test_sdxl_trains_with_the_settings_of_directional_textual_inversion(name: str) -> None:
    """One vector, 400 updates of 4 images at a constant rate of 0.04, without weights of timesteps."""
    config = configuration.load(f"configs/training/{name}_finetune_textual_inversion.yaml")
    training = config.training
    assert (training.optimizer, training.peak_learning_rate, training.lr_scheduler) == ("direction", 0.04, "constant")
    images = training.train_batch_size * training.gradient_accumulation_steps
    assert (images, training.total_step * training.train_batch_size / images) == (4, 400)
    assert (config.concept.num_vectors, config.loss.min_snr_gamma, training.kappa, training.beta) == (1, 0, 1e-4, 0)
