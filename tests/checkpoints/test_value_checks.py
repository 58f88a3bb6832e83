"""gm/checkpoints/value_checks.py: weights that are not finite floats are refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from gm.checkpoints import loading, value_checks
from gm.errors import UserError
from gm.models import stable_diffusion
from tests.reference.case import Case


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_one_value_among_many_is_found(dtype: str) -> None:
    values = np.full(value_checks._CHUNK * 2 + 3, np.finfo(dtype).max, dtype)
    assert value_checks.is_finite(values)
    assert value_checks.is_finite(-values)
    for place in (0, value_checks._CHUNK, -1):
        for bad in (np.nan, np.inf, -np.inf):
            spoiled = values.copy()
            spoiled[place] = bad
            assert not value_checks.is_finite(spoiled)


def test_scalars_empty_and_transposed_tensors_are_checked() -> None:
    assert value_checks.is_finite(np.array(4.6, np.float16))
    assert not value_checks.is_finite(np.array(np.nan, np.float16))
    assert value_checks.is_finite(np.zeros((0, 3), np.float16))
    matrix = np.zeros((5, 7), np.float16)
    matrix[3, 2] = np.inf
    assert not value_checks.is_finite(matrix.T)
    assert not value_checks.is_finite(matrix[:, ::2])


def test_the_message_counts_and_names_the_way_out() -> None:
    values = np.array([1.0, np.nan, np.inf, np.nan], np.float32)
    with pytest.raises(UserError, match=r"a\.ckpt: x\.weight holds 2 NaN and 1 infinite of 4 values; .* another file"):
        value_checks.check_finite(values, "x.weight", "a.ckpt")
    with pytest.raises(UserError, match=r"first_stage_model\.x holds 2 NaN.*; give another VAE with --vae"):
        value_checks.check_finite(values, "first_stage_model.x", "a.ckpt")


@pytest.mark.parametrize("network", ["model.diffusion_model.", "conditioner.embedders.1.", "first_stage_model."])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_weights_that_are_not_finite_are_neither_converted_nor_loaded(
    smallest: Case, tmp_path: Path, network: str, dtype: str
) -> None:
    weights = {name: array.astype(dtype) for name, array in smallest.weights.items()}
    name = [name for name in weights if name.startswith(network)][-1]
    weights[name].flat[-1] = np.nan
    source = tmp_path / "nan.safetensors"
    save_file(weights, source)
    for target in ("a.ckpt", "a.safetensors"):
        for target_dtype in ("float16", "float32"):
            with pytest.raises(UserError, match=rf"nan\.safetensors: {name.rpartition('.')[0]}\.\w+ holds 1 NaN of"):
                loading.convert(source, tmp_path / target, smallest.config, target_dtype)
    with pytest.raises(UserError, match=rf"nan\.safetensors: {name.rpartition('.')[0]}\.\w+ holds 1 NaN of"):
        loading.load_weights(stable_diffusion.build(smallest.config), source, smallest.config)
    assert [path.name for path in tmp_path.iterdir()] == ["nan.safetensors"]


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "bool"])
def test_integers_are_refused_by_name(smallest: Case, tmp_path: Path, dtype: str) -> None:
    name = next(name for name, array in smallest.weights.items() if array.ndim == 2)
    save_file(smallest.weights | {name: smallest.weights[name].astype(dtype)}, tmp_path / "a.safetensors")
    message = rf"a\.safetensors: {name} holds {dtype} values, as quantized models do"
    with pytest.raises(UserError, match=message):
        loading.convert(tmp_path / "a.safetensors", tmp_path / "b.ckpt", smallest.config, "float16")
    with pytest.raises(UserError, match=message):
        loading.load_weights(stable_diffusion.build(smallest.config), tmp_path / "a.safetensors", smallest.config)


def test_packed_integers_are_refused_as_what_they_are(smallest: Case, tmp_path: Path) -> None:
    """bitsandbytes keeps two values a byte and the shape elsewhere: not a matter of shapes."""
    name = next(name for name, array in smallest.weights.items() if array.ndim == 2)
    packed = {name: np.zeros((8, 1), np.uint8), f"{name}.absmax": np.ones(4, np.float32)}
    save_file(smallest.weights | packed, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=f"{name} holds uint8 values, as quantized models do"):
        loading.convert(tmp_path / "a.safetensors", tmp_path / "b.ckpt", smallest.config, "float16")
