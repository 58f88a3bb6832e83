"""tools/convert_weights/convert.py as a user calls it."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gm import config
from gm.checkpoints import containers
from gm.config import Config
from tests.project import Call
from tests.reference.case import Case

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "convert_weights" / "convert.py"


@pytest.fixture
def convert(smallest: Case, tmp_path: Path, call: Call) -> Call:
    """Return the function that calls the script for the smallest model."""
    config.save(Config(model=smallest.config), tmp_path / "model.yaml")
    return functools.partial(call, SCRIPT, "--config", tmp_path / "model.yaml")


@pytest.mark.parametrize("suffix", containers.SUFFIXES)
def test_it_writes_and_reports_the_target(convert: Call, smallest: Case, tmp_path: Path, suffix: str) -> None:
    target = tmp_path / f"a{suffix}"
    code, out, error = convert("--source", smallest.path, "--target", target)
    assert (code, error) == (0, "")
    assert out.startswith(f"wrote {target}: float16, 0.0")
    assert out.count("\n") == 1
    assert {tensor.dtype for tensor in containers.read(target).tensors.values()} == {"float16"}


def test_dtype_float32_is_written(convert: Call, smallest: Case, tmp_path: Path) -> None:
    assert convert("--source", smallest.path, "--target", tmp_path / "a.ckpt", "--dtype", "float32")[0] == 0
    assert {tensor.dtype for tensor in containers.read(tmp_path / "a.ckpt").tensors.values()} == {"float32"}


def test_it_converts_a_refiner(refiner: Case, tmp_path: Path, call: Call) -> None:
    config.save(Config(model=refiner.config), tmp_path / "refiner.yaml")
    target = tmp_path / "refiner.ckpt"
    code, out, error = call(SCRIPT, "--config", tmp_path / "refiner.yaml", "--source", refiner.path, "--target", target)
    assert (code, error) == (0, "")
    assert out.startswith(f"wrote {target}: float16, 0.0")
    assert "conditioner.embedders.0.model.ln_final.gamma" in containers.read(target).tensors


def test_a_vae_and_a_unet_of_their_own_are_taken(convert: Call, smallest: Case, tmp_path: Path) -> None:
    for name, key in (("vae", "first_stage_model"), ("unet", "model.diffusion_model")):
        tensors = {
            each.removeprefix(f"{key}."): array * np.float32(2)
            for each, array in smallest.weights.items()
            if each.startswith(key)
        }
        save_file(tensors, tmp_path / f"{name}.safetensors")
    arguments = ["--vae", tmp_path / "vae.safetensors", "--unet", tmp_path / "unet.safetensors", "--dtype", "float32"]
    target = tmp_path / "a.safetensors"
    assert convert("--source", smallest.path, "--target", target, *arguments)[0] == 0
    converted = load_file(target)
    for name, array in smallest.weights.items():
        factor = 1 if name.startswith("conditioner.") else 2
        assert np.array_equal(converted[name], factor * array), name


def test_an_existing_target_needs_overwrite(convert: Call, smallest: Case, tmp_path: Path) -> None:
    target = tmp_path / "a.ckpt"
    target.write_text("mine")
    code, _, error = convert("--source", smallest.path, "--target", target)
    assert (code, target.read_text()) == (2, "mine")
    assert "already exists; --overwrite replaces it" in error
    assert convert("--source", smallest.path, "--target", target, "--overwrite", "False")[0] == 2
    assert convert("--source", smallest.path, "--target", target, "--overwrite")[0] == 0
    code, _, error = convert("--source", target, "--target", tmp_path / "." / "a.ckpt", "--overwrite", "True")
    assert (code, "are the same file" in error) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sorce", "x"], "unknown argument --sorce; did you mean '--source'?"),
        (["--target", "x.ckpt"], "--source is missing"),
        (["--source", "SOURCE"], "--target is missing"),
        (["--source", "none", "--target", "x.ckpt"], "--source none does not exist"),
        (["--source", "SOURCE", "--target", "x.pt"], "must end in .ckpt or .safetensors"),
        (["--source", "SOURCE", "--target", "x.ckpt", "--vae", "none"], "--vae none does not exist"),
        (["--source", "SOURCE", "--target", "none/x.ckpt"], "none does not exist; create it"),
        (["--source", "SOURCE", "--target", "x.ckpt", "--dtype", "float64"], "invalid choice: 'float64'"),
        (["--source", "SOURCE", "--target", "x.ckpt", "--config", "none.yaml"], "none.yaml is not a file"),
    ],
)
def test_a_mistake_is_reported_in_one_line(
    convert: Call,
    smallest: Case,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, error = convert(*[str(smallest.path) if each == "SOURCE" else each for each in arguments])
    assert (code, out) == (2, "")
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["model.yaml"]
