"""Command line: flags from the config's fields, spellings of booleans, one-line errors, exit codes."""

import dataclasses
import sys

import pytest

from gm.config import Config, cli
from gm.config.parser import Parser
from gm.errors import UserError

TRAINING = ("run", "concept", "data", "training", "loss")
TINY = ["--config", "configs/training/tiny_textual_inversion.yaml"]


def parse(*arguments: str) -> Config:
    return cli.parse("test", TRAINING, [*TINY, *arguments])


def test_default_config_is_full_size() -> None:
    assert cli.parse("test", TRAINING, []).model.unet.model_channels == 320


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--infer_during_train", "True"], True),
        (["--infer_during_train", "true"], True),
        (["--infer_during_train", "TRUE"], True),
        (["--infer_during_train"], True),
        (["--infer_during_train", "False"], False),
        (["--infer_during_train", "fALSE"], False),
        ([], False),
    ],
)
def test_boolean_flags_take_any_case_and_no_value(arguments: list[str], expected: bool) -> None:
    assert parse(*arguments).training.infer_during_train is expected


def test_flags_set_their_options() -> None:
    config = parse(
        "--num_vectors", "10", "--placeholder_token", "<cat-toy>", "--total_step=30", "--learning_rate", "1e-4"
    )
    assert (config.concept.num_vectors, config.concept.placeholder_token) == (10, "<cat-toy>")
    assert (config.training.total_step, config.training.learning_rate) == (30, 1e-4)


def test_flags_of_diffusers_scripts_are_aliases() -> None:
    theirs = ("--lr_scheduler", "cosine", "--lr_warmup_steps", "7", "--adam_weight_decay", "0.1", "--snr_gamma", "5")
    theirs += ("--gradient_checkpointing",)
    ours = ("--lr_scheduler", "cosine", "--lr_warmup_steps", "7", "--weight_decay", "0.1", "--min_snr_gamma", "5")
    ours += ("--gradient_checkpointing", "True")
    assert parse(*theirs) == parse(*ours) != parse()
    with pytest.raises(UserError, match="did you mean '--lr_scheduler'"):
        parse("--lr_scheduller", "cosine")


def test_list_option_takes_several_values() -> None:
    config = cli.parse("test", ("sampling",), [*TINY, "--textual_inversion_weight", "a.ckpt", "b.ckpt"])
    assert config.sampling.textual_inversion_weight == ["a.ckpt", "b.ckpt"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num_vector", "3"], "unknown argument --num_vector; did you mean '--num_vectors'?"),
        (["--zzz"], "unknown argument --zzz"),
        (["stray"], "unknown argument stray"),
        (["--num_vectors", "many"], "concept.num_vectors: Value 'many'"),
        (["--num_vectors"], "expected one argument"),
        (["--num_vectors", "0"], "concept.num_vectors is 0; it must be at least 1"),
        (["--max_train_steps", "100"], "unknown argument --max_train_steps; --total_step counts the steps, gradient"),
        (["--train_data_dir=x"], "unknown argument --train_data_dir; the folder of images is --data_path"),
        (["--output_dir", "y"], "unknown argument --output_dir; the output folder is --save_path"),
        (["--mixed_precision", "bf16"], "the dtype of the frozen weights is --precision (float32, float16, bfloat16)"),
        (["--token_string", "t"], "the placeholder token is --placeholder_token"),
        (["--init_word", "t"], "the initializer token is --initializer_token"),
        (
            ["--learning_rate", "0.005:100, 1e-3:1000"],
            "--learning_rate '0.005:100, 1e-3:1000' is a schedule as AUTOMATIC1111 writes it; give its first rate, and",
        ),
        (["--learning_rate", "0.005:100"], "is a schedule as AUTOMATIC1111 writes it"),
        (["--repeats", "many"], "concept.repeats: Value 'many'"),
    ],
)
def test_user_errors_name_the_flag(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(*arguments)
    assert message in str(caught.value)


def test_path_flags_of_other_commands_expand_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    parser = Parser("a command")
    parser.add_path("--source", "files", nargs="+")
    parser.add_path("--target", "a file", default="~/out")
    parser.add_argument("--prompt")
    flags = parser.read(["--source", "~/a", "b", "--prompt=~/c"])
    assert flags == {"source": ["/home/me/a", "b"], "target": "/home/me/out", "prompt": "~/c"}


def test_hints_for_foreign_flags_name_flags_of_the_command() -> None:
    parser = Parser("without training")
    with pytest.raises(UserError) as caught:
        parser.read(["--output_dir", "x"])
    assert str(caught.value) == "unknown argument --output_dir"


@pytest.mark.parametrize(
    ("interval", "switch"),
    [("infer_interval", "infer_during_train"), ("validation_loss_interval", "num_validation_samples")],
)
def test_an_interval_of_what_is_off_is_named(interval: str, switch: str, caplog: pytest.LogCaptureFixture) -> None:
    parse()
    parse(f"--{interval}=7", f"--{switch}={1 if switch.startswith('num') else True}")
    assert caplog.messages == []
    parse(f"--{interval}=7", "--num_validation_samples=0")
    assert caplog.messages == [f"--{interval} 7 has no effect without --{switch}"]


@pytest.mark.parametrize("sections", [TRAINING, ("run", "sampling")])
def test_flags_of_a_script_are_unique_across_sections(sections: tuple[str, ...]) -> None:
    names = [f.name for section in sections for f in dataclasses.fields(getattr(Config(), section))]
    assert len(names) == len(set(names))


def test_help_shows_every_flag_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse("--help")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for section in TRAINING:
        for field in dataclasses.fields(getattr(Config(), section)):
            assert f"--{field.name} " in text
    assert "(default: 3000)" in text


def test_run_prints_a_user_error_as_one_line_and_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise UserError("no such thing; take another")

    with pytest.raises(SystemExit) as caught:
        cli.run(main)
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: no such thing; take another\n"
    assert sys.stdout is not None


@pytest.mark.parametrize(
    ("raised", "code"), [(None, 0), (UserError("no"), 2), (KeyboardInterrupt(), 130), (SystemExit(143), 143)]
)
def test_exit_hooks_get_the_exit_code(monkeypatch: pytest.MonkeyPatch, raised: BaseException | None, code: int) -> None:
    codes: list[int] = []
    monkeypatch.setattr(cli, "exit_hooks", [codes.append])

    def main() -> None:
        if raised:
            raise raised

    if code:
        with pytest.raises(SystemExit) as end:
            cli.run(main)
        assert end.value.code == code
    else:
        cli.run(main)
    assert codes == [code]
