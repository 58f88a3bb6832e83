"""Paths that users type: the home folder, and shipped files from other working folders."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from gm import config as configuration
from gm.config import Config, SamplingConfig, cli, paths

ROOT = Path(__file__).resolve().parents[2]
TINY = "configs/training/tiny_textual_inversion.yaml"
SECTIONS = ("run", "concept", "training", "sampling")
NO_PATHS = {  # what has a path-like name or default and is not resolved by the config
    "prompt",
    "validation_prompts",  # text, or a file: `gm.sampling.prompt_file` decides
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "home"


def test_tilde_is_the_home_folder(home: Path) -> None:
    assert paths.expand("~/a.ckpt") == str(home / "a.ckpt")
    assert paths.expand("~") == str(home)
    for path in ("a~/b", "", "~nobody-of-that-name/a", "/a/~", "toy.ckpt=<~toy>"):
        assert paths.expand(path) == path


@pytest.mark.parametrize("section", SECTIONS)
def test_every_option_of_a_path_expands_it(home: Path, section: str, tmp_path: Path) -> None:
    fields = dataclasses.fields(getattr(Config(), section))
    names = [field.name for field in fields if field.metadata["path"]]
    assert names
    many = {field.name for field in fields if field.type == "list[str]"}
    expected = {name: [f"{home}/x"] if name in many else f"{home}/x" for name in names}
    values = {name: ["~/x"] if name in many else "~/x" for name in names}
    assert values_of(configuration.load(None, {section: values}), section, names) == expected
    (tmp_path / "c.yaml").write_text(f"{section}: {values}".replace("'", ""))
    assert values_of(configuration.load(tmp_path / "c.yaml"), section, names) == expected
    flags = [f"--{name}=~/x" for name in names]
    assert values_of(cli.parse("", (section,), ["--config", TINY, *flags]), section, names) == expected
    replaced = dataclasses.replace(getattr(Config(), section), **values)  # as the app and `gm.api` do
    assert {name: getattr(replaced, name) for name in names} == expected


def values_of(config: Config, section: str, names: list[str]) -> dict[str, object]:
    return {name: getattr(getattr(config, section), name) for name in names}


def test_every_option_that_is_a_path_says_so() -> None:
    likely = ("path", "_weight", "file", "config", "img", "mask", "weight", "resume", "vae", "unet")
    for section in SECTIONS:
        for field in dataclasses.fields(getattr(Config(), section)):
            if field.name.endswith(likely) and "str" in str(field.type) and field.name not in NO_PATHS:
                assert field.metadata["path"], field.name


def test_paths_of_several_concepts_are_expanded(home: Path, tmp_path: Path) -> None:
    (tmp_path / "concepts.yaml").write_text("- {placeholder_token: <a>, data_path: ~/a}\n- {data_path: ~/b}\n")
    home.mkdir()
    (home / "c.yaml").write_text("- {data_path: ~/c}")
    entries = [str(tmp_path / "concepts.yaml"), "~/c.yaml", "{data_path: ~/d}"]
    config = cli.parse("", ("concept",), ["--config", TINY, "--concepts", *entries])
    assert [concept.data_path for concept in config.concepts] == [f"{home}/{name}" for name in "abcd"]


def test_text_is_no_path(home: Path) -> None:
    for text in ("~/x", "~"):
        sampling = configuration.load(None, {"sampling": {"prompt": text, "negative_prompt": text}}).sampling
        assert (sampling.prompt, sampling.negative_prompt) == (text, text)


def test_shipped_configs_and_weights_are_found_from_any_folder(home: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere" / "configs").mkdir()  # a folder of that name is no reason to miss the file
    config = cli.parse("", ("run",), ["--config", TINY])
    assert config.model.version == "tiny-SD-XL"
    assert configuration.load(TINY).model == config.model
    weight = "checkpoints/tiny_sd_xl_base.safetensors"
    assert cli.parse("", ("run",), ["--config", TINY, "--weight", weight]).run.weight == str(ROOT / weight)
    assert cli.parse("", ("run",), []).model.unet.model_channels == 320  # the default config
    sampling = SamplingConfig(pipeline_weight="gone.ckpt")
    assert sampling.pipeline_config == str(ROOT / "configs" / "sampling" / "sd_xl_refiner.yaml")
    assert sampling.pipeline_weight == "gone.ckpt"


def test_a_file_in_the_working_folder_comes_first(home: Path, tmp_path: Path) -> None:
    mine = tmp_path / "elsewhere" / TINY
    mine.parent.mkdir(parents=True)
    mine.write_text("training: {seed: 5}")
    assert configuration.load(TINY).training.seed == 5
    assert paths.find_shipped(TINY) == TINY
    assert paths.find_shipped("pyproject.toml") == str(ROOT / "pyproject.toml")
    assert paths.find_shipped("nowhere.yaml") == "nowhere.yaml"
    assert paths.find_shipped("") == ""
