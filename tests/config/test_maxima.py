"""Numbers have maxima, so that nothing is allocated for senseless ones, and paths are those of files and folders."""

from __future__ import annotations

import dataclasses
import math
import os
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gm import config as configuration
from gm.config import Config, RunConfig, cli, paths, schema
from gm.errors import UserError

TINY = ["--config", "configs/training/tiny_textual_inversion.yaml"]


def numbers(section: type) -> Iterator[tuple[type, dataclasses.Field]]:
    """Yield the options that are numbers, with their sections."""
    hints = typing.get_type_hints(section)
    for field in dataclasses.fields(section):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from numbers(hints[field.name])
            continue
        kind, _ = schema.option_type(section, field.name)
        kind = typing.get_args(kind)[0] if typing.get_origin(kind) is tuple else kind
        if kind in (int, float) and not field.metadata["choices"]:
            yield section, field


@pytest.mark.parametrize(
    ("section", "field"),
    list(numbers(Config)),
    ids=lambda value: getattr(value, "name", getattr(value, "__name__", "")),
)
def test_every_number_has_a_maximum_and_a_default_within_it(section: type, field: dataclasses.Field) -> None:
    assert field.metadata["maximum"] is not None
    assert field.metadata["maximum"] < math.inf or field.name == "s_tmax"
    configuration.check(Config())


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("num_cols", "30000000"),
        ("width", "4000000000"),
        ("batch_size", "1000000000"),
        ("guidance_scale", "inf"),
        ("aesthetic_score", "-inf"),
        ("eta", "1e308"),
        ("seed", str(2**64)),
    ],
)
def test_senseless_numbers_are_refused(flag: str, value: str) -> None:
    with pytest.raises(UserError, match=f"{flag} is .*; it must be at (most|least)") as caught:
        cli.parse("", ("sampling",), [*TINY, f"--{flag}={value}"])
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"unet": {"model_channels": 10**9}}, "model_channels is 1000000000; it must be at most"),
        ({"vae": {"channel_mult": [1, 10**9]}}, "channel_mult is 1000000000; it must be at most"),
        ({"vae": {"scale_factor": math.inf}}, "scale_factor is inf"),
        ({"resolution": 8 * 10**9}, "resolution is 8000000000"),
    ],
)
def test_senseless_sizes_of_a_model_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        configuration.load(None, {"model": values})


def test_seeds_of_other_programs_are_allowed() -> None:
    assert cli.parse("", ("sampling",), [*TINY, f"--seed={2**64 - 1}"]).sampling.seed == 2**64 - 1


@pytest.mark.parametrize("option", ["weight", "vae", "lora_weight"])
def test_paths_that_are_none_are_one_line(option: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, message in (
        ("x" * 300, "is longer than a path can be"),
        ("a/" * 3000, "is longer than a path can be"),
        ("grün" * 60, "is longer than a path can be"),  # 300 bytes
        ("a\0b", "has a null character"),
        ("~a\0b", "has a null character"),
        ("/dev/zero", "/dev/zero is a device; give a file or folder"),
        (str(tmp_path / "fifo"), "fifo is a pipe; give a file or folder"),
    ):
        value = [path] if option == "lora_weight" else path
        with pytest.raises(UserError, match=message) as caught:
            dataclasses.replace(RunConfig(), **{option: value})
        assert str(caught.value).startswith(f"--{option} ")
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 300


def test_usual_paths_are_as_they_were(tmp_path: Path) -> None:
    for path in (str(tmp_path), "missing.ckpt", "", "grün.ckpt", "x" * 255, "\udc80.ckpt"):
        assert dataclasses.replace(RunConfig(), weight=path).weight == path
    assert paths.special_kind(tmp_path) == ""
