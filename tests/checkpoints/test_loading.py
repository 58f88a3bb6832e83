"""gm/checkpoints/loading.py: weights into a model and into other formats."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, ops
from safetensors.numpy import load_file

from gm.checkpoints import containers, key_mapping, loading
from gm.errors import UserError
from gm.models import stable_diffusion
from gm.models.stable_diffusion import StableDiffusion
from tests.checkpoints.files import lazy
from tests.reference.case import Case


def assert_filled(model: StableDiffusion, weights: dict[str, np.ndarray], half: bool = False) -> None:
    """Assert that every parameter has the published values, with `half` rounded to float16."""
    for parameter in model.get_parameters():
        expected = weights[key_mapping.published_name(parameter.name)]
        expected = expected.astype(np.float16) if half else expected
        values = parameter.asnumpy()
        assert np.array_equal(values, expected.astype(values.dtype)), parameter.name


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_conversion_there_and_back_gives_the_same_file(any_case: Case, tmp_path: Path, dtype: str) -> None:
    case = any_case
    published, checkpoint, again = (tmp_path / name for name in ("a.safetensors", "b.ckpt", "c.safetensors"))
    tensors = {name: array.astype(dtype) for name, array in case.weights.items()}
    containers.write(published, lazy(tensors), {"format": "pt"})
    loading.convert(published, checkpoint, case.config, dtype)
    loading.convert(checkpoint, again, case.config, dtype)
    assert again.read_bytes() == published.read_bytes()
    loading.convert(checkpoint, tmp_path / "d.ckpt", case.config, dtype)
    assert (tmp_path / "d.ckpt").read_bytes() == checkpoint.read_bytes()


def test_mindspore_loads_a_converted_checkpoint(smallest: Case, tmp_path: Path) -> None:
    loading.convert(smallest.path, tmp_path / "a.ckpt", smallest.config, "float32")
    parameters = ms.load_checkpoint(str(tmp_path / "a.ckpt"))
    assert list(parameters) == list(key_mapping.parameter_shapes(smallest.model))
    model = stable_diffusion.build(smallest.config)
    assert ms.load_param_into_net(model, parameters, strict_load=True) == ([], [])
    assert_filled(model, smallest.weights)


def test_a_checkpoint_that_mindspore_saved_converts(smallest: Case, tmp_path: Path) -> None:
    ms.save_checkpoint(smallest.model, str(tmp_path / "a.ckpt"))
    loading.convert(tmp_path / "a.ckpt", tmp_path / "b.safetensors", smallest.config, "float32")
    converted = load_file(tmp_path / "b.safetensors")
    assert set(converted) == set(smallest.weights)
    assert all(np.array_equal(converted[name], array) for name, array in smallest.weights.items())


def test_tensors_that_are_not_weights_are_left_out(smallest: Case, tmp_path: Path) -> None:
    ids = {"conditioner.embedders.0.transformer.text_model.embeddings.position_ids": np.arange(30)[None]}
    levels = {"denoiser.sigmas": np.ones(1000, np.float32)}
    containers.write(tmp_path / "a.safetensors", lazy(smallest.weights | ids | levels))
    loading.convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", smallest.config, "float32")
    assert set(load_file(tmp_path / "b.safetensors")) == set(smallest.weights)


@pytest.mark.parametrize("suffix", containers.SUFFIXES)
@pytest.mark.parametrize("dtype", [ms.float32, ms.float16])
def test_loading_keeps_the_dtypes_of_the_model(smallest: Case, tmp_path: Path, suffix: str, dtype: ms.Type) -> None:
    loading.convert(smallest.path, tmp_path / f"a{suffix}", smallest.config, "float16")
    model = stable_diffusion.build(smallest.config, dtype)
    types = {parameter.name: parameter.dtype for parameter in model.get_parameters()}
    loading.load_weights(model, tmp_path / f"a{suffix}", smallest.config)
    model.init_parameters_data()  # as MindSpore does before it runs a network; must not undo the loading
    assert {parameter.name: parameter.dtype for parameter in model.get_parameters()} == types
    assert {ms.float32, dtype} == set(types.values())
    assert not any(parameter.requires_grad for parameter in model.get_parameters())
    assert_filled(model, smallest.weights, half=True)


def test_a_loaded_model_outlives_its_file(smallest: Case, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    loading.convert(smallest.path, path, smallest.config, "float32")
    model = stable_diffusion.build(smallest.config)
    loading.load_weights(model, path, smallest.config)
    zeros = {name: np.zeros_like(array) for name, array in smallest.weights.items()}
    containers.write(path, lazy(zeros))  # written to a temporary file, then renamed
    assert_filled(model, smallest.weights)
    path.unlink()
    assert_filled(model, smallest.weights)


def test_a_loaded_model_computes(smallest: Case) -> None:
    model = stable_diffusion.build(smallest.config)
    loading.load_weights(model, smallest.path, smallest.config)
    latents = Tensor(np.random.default_rng(1).standard_normal((1, 8, 4, 4), dtype=np.float32))
    ours, expected = (m.first_stage_model.decode(latents).asnumpy() for m in (model, smallest.model))
    assert np.array_equal(ours, expected)


@pytest.mark.reference
def test_bfloat16_loads_and_converts(smallest: Case, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file as save_torch

    save_torch(
        {name: torch.from_numpy(array).bfloat16() for name, array in smallest.weights.items()},
        tmp_path / "a.safetensors",
    )
    rounded = {name: torch.from_numpy(a).bfloat16().float().numpy() for name, a in smallest.weights.items()}
    loading.convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", smallest.config, "float32")
    converted = load_file(tmp_path / "b.safetensors")
    assert all(np.array_equal(converted[name], array) for name, array in rounded.items())
    model = stable_diffusion.build(smallest.config, ms.bfloat16)
    loading.load_weights(model, smallest.path, smallest.config)
    for parameter in model.get_parameters():
        values = rounded if parameter.dtype == ms.bfloat16 else smallest.weights
        assert np.array_equal(parameter.float().asnumpy(), values[key_mapping.published_name(parameter.name)])


def test_float16_overflow_leaves_no_file(smallest: Case, tmp_path: Path) -> None:
    name = next(name for name in reversed(smallest.weights) if name.endswith("conv_out.weight"))
    tensors = {n: array.copy() for n, array in smallest.weights.items()}
    tensors[name].flat[5] = 1e5
    containers.write(tmp_path / "a.safetensors", lazy(tensors))
    with pytest.raises(UserError, match=f"{name} holds 100000, too large for float16"):
        loading.convert(tmp_path / "a.safetensors", tmp_path / "b.ckpt", smallest.config, "float16")
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


KILLED = """
import os, signal, sys
from gm.checkpoints import loading
from tests.reference.configs import CONFIGS
source, target, name = sys.argv[1:]
loading.convert(source, target, CONFIGS[name], "float16", lambda done, total: os.kill(os.getpid(), signal.SIGKILL))
"""


@pytest.mark.e2e
def test_a_killed_conversion_leaves_no_target_and_the_next_one_cleans_up(smallest: Case, tmp_path: Path) -> None:
    target = tmp_path / "a.ckpt"
    command = [sys.executable, "-c", KILLED, str(smallest.path), str(target), smallest.name]
    process = subprocess.Popen(command)
    assert process.wait() == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == [f".a.ckpt.{process.pid}.0.tmp"]
    loading.convert(smallest.path, target, smallest.config, "float16")
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]


def test_values_that_need_no_cast_stay_memory_mapped(smallest: Case, tmp_path: Path) -> None:
    containers.write(tmp_path / "a.safetensors", lazy(smallest.weights))
    before = (tmp_path / "a.safetensors").read_bytes()
    model = stable_diffusion.build(smallest.config)
    loading.load_weights(model, tmp_path / "a.safetensors", smallest.config)
    mapped = Path("/proc/self/smaps").read_text().partition(str(tmp_path / "a.safetensors"))[2]
    assert int(mapped.partition("Private_Dirty:")[2].split()[0]) == 0
    for parameter in model.get_parameters():
        ops.assign(parameter, parameter * 0 + 7)
    assert (tmp_path / "a.safetensors").read_bytes() == before
    mapped = Path("/proc/self/smaps").read_text().partition(str(tmp_path / "a.safetensors"))[2]
    assert int(mapped.partition("Private_Dirty:")[2].split()[0]) > 0.9 * len(before) / 1024


def test_a_cast_releases_the_pages_of_the_file(smallest: Case, tmp_path: Path) -> None:
    loading.convert(smallest.path, tmp_path / "half.safetensors", smallest.config, "float16")
    model = stable_diffusion.build(smallest.config)
    loading.load_weights(model, tmp_path / "half.safetensors", smallest.config)
    float32 = [p for p in model.get_parameters() if p.dtype == ms.float32]
    for parameter in float32:
        ops.assign(parameter, parameter * 0 + 7)
    mapped = Path("/proc/self/smaps").read_text().partition(str(tmp_path / "half.safetensors"))[2]
    assert not mapped or int(mapped.partition("Rss:")[2].split()[0]) == 0


def test_large_weights_stay_float16_as_in_their_file(smallest: Case, tmp_path: Path) -> None:
    """Only those that are large and float16 there: the rest has the dtype of the model."""
    loading.convert(smallest.path, tmp_path / "half.safetensors", smallest.config, "float16")
    shapes = key_mapping.parameter_shapes(stable_diffusion.build(smallest.config))
    large = {name for name, shape in shapes.items() if np.prod(shape) >= 1000}
    assert 0 < len(large) < len(shapes)
    for source, narrow in ((tmp_path / "half.safetensors", large), (smallest.path, set())):
        model = stable_diffusion.build(smallest.config)
        loading.load_weights(model, source, smallest.config, keep_half_above=1000)
        assert {p.name for p in model.get_parameters() if p.dtype == ms.float16} == narrow
        assert {p.dtype for p in model.get_parameters()} <= {ms.float16, ms.float32}
        assert not any(parameter.requires_grad for parameter in model.get_parameters())
        assert_filled(model, smallest.weights, half=source != smallest.path)


def test_a_warning_precedes_weights_larger_than_the_free_memory(
    smallest: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def warnings(path: Path, free: int, keep_half_above: float = math.inf) -> list[str]:
        caplog.clear()
        monkeypatch.setattr(loading, "memory_available", lambda: free)
        loading.load_weights(stable_diffusion.build(smallest.config), path, smallest.config, keep_half_above)
        return caplog.messages

    size = sum(parameter.size * 4 for parameter in stable_diffusion.build(smallest.config).get_parameters())
    half = tmp_path / "half.ckpt"
    loading.convert(smallest.path, half, smallest.config, "float16")
    assert warnings(half, size) == []
    (one,) = warnings(half, size - 1)
    assert one.endswith("GB are free: --low_memory most keeps float16 weights half as large")
    assert warnings(half, size - 1, keep_half_above=1) == []
    # --low_memory is advised only where it helps.
    for path, keep_half_above in ((half, 1), (smallest.path, math.inf)):
        (one,) = warnings(path, 1, keep_half_above)
        assert one.endswith("GB are free: close other programs")


def test_the_free_memory_is_known() -> None:
    assert loading.memory_available() > 1e8
