"""Text in options: never interpolated, never converted, and back again from a saved file."""

from __future__ import annotations

from pathlib import Path

import pytest

from gm import config as configuration
from gm.config import cli, yaml_files
from gm.errors import UserError
from tests.config.refusal import refusal

TINY = ["--config", "configs/training/tiny_textual_inversion.yaml"]
TEXTS = (
    "${oc.env:SECRET}",
    "\\${oc.env:SECRET}",
    "\\\\${oc.env:SECRET}",
    "a \\\\\\${training.seed} b${",
    "${",
    "\\${",
    "$${training.seed}\\",
    "'${oc.env:SECRET}'",
    "$5 {a} \\{b}\\",
    "null",
    "~",
    "yes",
    "012",
    "1e3",
    "2024-01-01",
    "12:30:45",
    "one\ntwo",
    "one\u2028two\x85three",
    " spaces ",
    "#no comment",
    "- a",
    "\x07 \ufeff 😀 grün",
    "\udc80",  # a byte of the command line that is not UTF-8
)


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "the secret")


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
def test_text_stays_as_it_was_typed(text: str, tmp_path: Path) -> None:
    flags = ["--prompt", text, f"--negative_prompt={text}", "--textual_inversion_weight", f"a{text}", "b"]
    config = cli.parse("", ("sampling",), [*TINY, *flags])
    assert config.sampling.prompt == text
    assert config.sampling.negative_prompt == text
    assert config.sampling.textual_inversion_weight == [f"a{text}", "b"]
    configuration.save(config, tmp_path / "saved.yaml")
    assert configuration.load(tmp_path / "saved.yaml") == config
    (concept,) = [configuration.with_concepts(config, [{"placeholder_token": text}]).concept]
    assert concept.placeholder_token == text


def test_text_of_yaml_files_is_not_interpolated(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    text = "{placeholder_token: '${oc.env:SECRET}', data_path: '${oc.env:SECRET}/a'}"
    path.write_text(f"concepts: [{text}, {text}]\nsampling: {{prompt: '${{concept.data_path}}'}}")
    config = configuration.load(path)
    assert [concept.placeholder_token for concept in config.concepts] == ["${oc.env:SECRET}"] * 2
    assert config.sampling.prompt == "${concept.data_path}"
    (tmp_path / "concepts.yaml").write_text(f"- {text}\n- {text}\n")
    for entries in ([text, text], [str(tmp_path / "concepts.yaml")]):
        config = cli.parse("", ("concept",), [*TINY, "--concepts", *entries])
        assert [concept.data_path for concept in config.concepts] == ["${oc.env:SECRET}/a"] * 2


def test_scalars_of_yaml_files_are_the_text_of_text_options(tmp_path: Path) -> None:
    """Not False, 10 and 45045, as YAML 1.1 has it."""
    path = tmp_path / "c.yaml"
    for text in ("no", "on", "012", "12:30:45", "1_000", "2024-01-01", "1e3", "0x10", "True", "1.0"):
        path.write_text(f"sampling: {{prompt: {text}, textual_inversion_weight: [{text}]}}")
        sampling = configuration.load(path).sampling
        assert (sampling.prompt, sampling.textual_inversion_weight) == (text, [text])


def test_scalars_of_yaml_files_are_converted_by_their_option(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        "sampling: {s_tmax: .inf, eta: 1e-3, seed: 7, prompt_weights: no, height: null, width: ~, mask: ,\n"
        "  init_latent_path: 'null', sd_xl_base_ratios: 1.75}\n"
        "defaults: &shared {num_vectors: 3}\n".replace("defaults: &shared", "concept: &shared")
        + "concepts:\n- {<<: *shared, placeholder_token: <a>}\n- *shared\n"
    )
    config = configuration.load(path)
    sampling = config.sampling
    assert (sampling.s_tmax, sampling.eta, sampling.seed, sampling.prompt_weights) == (float("inf"), 1e-3, 7, False)
    assert (sampling.height, sampling.width, sampling.mask, sampling.init_latent_path) == (None, None, None, "null")
    assert sampling.sd_xl_base_ratios == "1.75"
    assert [(each.num_vectors, each.placeholder_token) for each in config.concepts] == [(3, "<a>"), (3, "<concept>")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training: {seed: '${oc.env:SECRET}'}", "${oc.env:SECRET}"),
        ("training: ${training}", "training is '${training}'; it is a section of options and values"),
        ("model: {unet: '${oc.env:SECRET}'}", "model.unet"),
        ("training: '${oc.env:SECRET}'", "it is a section"),
        ("run: \\${x}", "it is a section"),
        ("training: ???", "'???' is not a value: training"),
        ("sampling: {img: ['???']}", "'???' is not a value: sampling.img"),
        ("training: {seed: '???'}", "'???' is not a value: training.seed"),
        ("sampling: {img: {a: 1}}", "Cannot merge incompatible container types"),
        ("concepts: 5", "5 is not a file; give a YAML file with a list of mappings"),
        ("concepts: ['${oc.env:SECRET}', a]", "${oc.env:SECRET} is not a file"),
        ("concepts: [[a]]", "concept 1 is ['a']; write {placeholder_token: <token>, data_path: folder}"),
        ("training: {seed: 1, seed: 2}", "seed is there twice"),
        ("training: {seed: !!bool maybe}", "is not YAML"),
        ("training: {seed: !!python/object:os.system x}", "is not YAML"),
        ("training: {seed: !!timestamp 2024-01-01}", "Value 'date' is not a supported primitive type"),
        ("training: &a {seed: *a}", ""),
        ("training: &a [*a]", "nested too deeply"),
        ("model: {unet: {channel_mult: '${oc.env:SECRET}'}}", "channel_mult"),
        ("[" * 5000, "nested too deeply"),
        ("1: 2", "1"),
        ("? [a]\n: 1", "is not YAML"),
    ],
)
def test_mistakes_are_one_line_and_show_no_variable(text: str, message: str, tmp_path: Path) -> None:
    refused = refusal(text, tmp_path)
    assert message in refused
    assert "the secret" not in refused


@pytest.mark.parametrize("flag", ["--seed", "--learning_rate", "--ms_mode", "--infer_during_train", "--num_vectors"])
@pytest.mark.parametrize("text", ["${oc.env:SECRET}", "\\${oc.env:SECRET}", "${training.seed}", "${"])
def test_a_flag_of_another_type_is_named_with_its_text(flag: str, text: str) -> None:
    with pytest.raises(UserError) as caught:
        cli.parse("", ("run", "concept", "training"), [*TINY, f"{flag}={text}"])
    assert flag.removeprefix("--") in str(caught.value)
    assert "the secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_text_is_a_list_of_one(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("sampling: {img: '${oc.env:SECRET}.png'}\ntraining: {validation_prompts: a cat}")
    config = configuration.load(tmp_path / "c.yaml")
    assert config.sampling.img == ["${oc.env:SECRET}.png"]
    assert config.training.validation_prompts == ["a cat"]


def test_an_empty_section_has_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("training:\n  # seed: 1\nsampling: null\nconcepts:\n")
    assert configuration.load(tmp_path / "c.yaml") == configuration.load()


def test_a_file_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes("sampling: {prompt: grün}".encode("latin-1"))
    with pytest.raises(UserError, match=r"c\.yaml is not YAML: it is not UTF-8 text; save it with that encoding"):
        configuration.load(tmp_path / "c.yaml")
    (tmp_path / "c.yaml").write_text("\ufeffsampling: {prompt: grün}", encoding="utf-8")
    assert yaml_files.read(tmp_path / "c.yaml") == {"sampling": {"prompt": "grün"}}
