"""gm/checkpoints/scaled_float8.py: float8 checkpoints, plain and with the scales of ComfyUI."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file

from gm.checkpoints import containers, loading
from gm.errors import UserError
from gm.models import stable_diffusion
from tests.reference.case import Case

Weights = dict[str, torch.Tensor]
TYPES = {"float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2}
UNET = "model.diffusion_model."

pytestmark = pytest.mark.reference


def weights_of(case: Case) -> Weights:
    return {name: torch.from_numpy(array) for name, array in case.weights.items()}


def layers_of(case: Case) -> list[str]:
    """Return the layers of the UNet whose weight is a matrix, which ComfyUI's quantized files scale."""
    found = [name for name, array in case.weights.items() if name.startswith(UNET) and array.ndim == 2]
    return [name.removesuffix(".weight") for name in found]


def quantized(case: Case, scale_key: str, dtype: str = "float8_e4m3fn") -> tuple[Weights, Weights]:
    """Return the tensors of a file with scaled matrices in the UNet, and the weights that they mean."""
    tensors = weights_of(case)
    meant = dict(tensors)
    for layer in layers_of(case):
        weight = tensors[f"{layer}.weight"]
        scale = weight.abs().max() / 448.0
        tensors[f"{layer}.weight"] = (weight / scale).to(TYPES[dtype])
        tensors[f"{layer}.{scale_key}"] = scale
        meant[f"{layer}.weight"] = tensors[f"{layer}.weight"].float() * scale
    return tensors, meant


def converted(case: Case, tensors: Weights, folder: Path, metadata: dict[str, str] | None = None) -> Any:
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "in.safetensors", metadata)
    loading.convert(folder / "in.safetensors", folder / "out.safetensors", case.config, "float32")
    return load_file(folder / "out.safetensors")


def assert_equal(found: dict[str, np.ndarray], expected: Weights) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert np.array_equal(found[name], value.float().numpy()), name


@pytest.mark.parametrize("dtype", TYPES)
def test_plain_float8_is_read_exactly(smallest: Case, tmp_path: Path, dtype: str) -> None:
    tensors = {name: value.to(TYPES[dtype]) for name, value in weights_of(smallest).items()}
    assert_equal(converted(smallest, tensors, tmp_path), tensors)
    tensor = next(iter(containers.read(tmp_path / "in.safetensors").tensors.values()))
    assert (tensor.dtype, tensor.itemsize) == (dtype, 1)
    model = stable_diffusion.build(smallest.config)
    loading.load_weights(model, tmp_path / "in.safetensors", smallest.config, keep_half_above=1000)
    assert {p.dtype for p in model.get_parameters() if p.size >= 1000} == {ms.float16}
    for parameter in model.get_parameters():
        name = loading.published_name(parameter.name)
        assert np.array_equal(parameter.asnumpy(), tensors[name].to(torch.float32).numpy()), name


def test_float8_that_overflowed_is_refused_by_name(smallest: Case, tmp_path: Path) -> None:
    tensors = {name: value.to(torch.float8_e4m3fn) for name, value in weights_of(smallest).items()}
    name = list(tensors)[3]
    tensors[name].view(torch.uint8).view(-1)[0] = 0x7F
    with pytest.raises(UserError, match=r"holds 1 NaN of"):
        converted(smallest, tensors, tmp_path)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("marker", [torch.zeros(0), torch.zeros(2).to(torch.float8_e4m3fn), None], ids=str)
def test_the_first_generation_of_scales_is_applied(
    smallest: Case, tmp_path: Path, dtype: str, marker: torch.Tensor | None
) -> None:
    tensors, meant = quantized(smallest, "scale_weight", dtype)
    if marker is not None:
        tensors[f"{UNET}scaled_fp8"] = marker
    assert_equal(converted(smallest, tensors, tmp_path), meant)


def test_the_second_generation_of_scales_is_applied(smallest: Case, tmp_path: Path) -> None:
    tensors, meant = quantized(smallest, "weight_scale")
    described = json.dumps({"format": "float8_e4m3fn", "full_precision_matrix_mult": True}).encode()
    for layer in layers_of(smallest):
        tensors[f"{layer}.comfy_quant"] = torch.tensor(list(described), dtype=torch.uint8)
    assert_equal(converted(smallest, tensors, tmp_path), meant)


@pytest.mark.parametrize("prefix", [UNET, ""])
def test_bits_kept_as_uint8_are_read_as_the_metadata_describes(smallest: Case, tmp_path: Path, prefix: str) -> None:
    tensors, meant = quantized(smallest, "weight_scale", "float8_e5m2")
    layers = {}
    for layer in layers_of(smallest):
        tensors[f"{layer}.weight"] = tensors[f"{layer}.weight"].view(torch.uint8)
        layers[prefix + layer.removeprefix(UNET)] = {"format": "float8_e5m2"}
    metadata = {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}
    assert_equal(converted(smallest, tensors, tmp_path, metadata | {"title": "a"}), meant)
    assert containers.read(tmp_path / "in.safetensors").metadata == {"title": "a"}  # it describes these tensors no more


@pytest.mark.parametrize("shape", [(1,), (-1,), (-1, 1)])
def test_a_scale_is_one_number_or_one_a_row(smallest: Case, tmp_path: Path, shape: tuple[int, ...]) -> None:
    tensors = weights_of(smallest)
    layer = layers_of(smallest)[0]
    rows = len(tensors[f"{layer}.weight"]) if -1 in shape else 1
    scale = torch.linspace(0.5, 2.0, rows)
    tensors[f"{layer}.weight"] = tensors[f"{layer}.weight"].to(torch.float8_e4m3fn)
    meant = tensors | {f"{layer}.weight": tensors[f"{layer}.weight"].float() * scale[:, None]}
    assert_equal(converted(smallest, tensors | {f"{layer}.scale_weight": scale.reshape(shape)}, tmp_path), meant)


def test_a_scale_of_another_shape_is_refused(smallest: Case, tmp_path: Path) -> None:
    layer = layers_of(smallest)[0]
    with pytest.raises(UserError, match=rf"the scale of {layer}\.weight has shape \[3, 2\].*use the float16 file"):
        converted(smallest, weights_of(smallest) | {f"{layer}.scale_weight": torch.ones(3, 2)}, tmp_path)


def test_a_scale_without_a_weight_is_reported(smallest: Case, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"1 unexpected \(nothing\.scale_weight\)"):
        converted(smallest, weights_of(smallest) | {"nothing.scale_weight": torch.tensor(2.0)}, tmp_path)


@pytest.mark.parametrize("name", ["scale_input", "input_scale"])
def test_scales_of_inputs_are_left_out_with_a_line(
    smallest: Case, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    caplog.set_level("INFO", logger="gm")
    inputs = {f"{layer}.{name}": torch.tensor(0.5) for layer in layers_of(smallest)}
    assert_equal(converted(smallest, weights_of(smallest) | inputs, tmp_path), weights_of(smallest))
    assert f"{len(inputs)} scales of inputs are not used" in caplog.text


@pytest.mark.parametrize("name", ["int8_tensorwise", "nvfp4", "mxfp8"])
def test_another_quantization_is_refused_by_its_name(smallest: Case, tmp_path: Path, name: str) -> None:
    layer = layers_of(smallest)[0]
    text = torch.tensor(list(json.dumps({"format": name}).encode()), dtype=torch.uint8)
    with pytest.raises(UserError, match=rf"{layer} is quantized as {name}, which is not supported; use the float16"):
        converted(smallest, weights_of(smallest) | {f"{layer}.comfy_quant": text}, tmp_path)
    metadata = {"_quantization_metadata": json.dumps({"layers": {layer: {"format": name}}})}
    with pytest.raises(UserError, match=f"is quantized as {name}"):
        converted(smallest, weights_of(smallest), tmp_path, metadata)


@pytest.mark.parametrize("text", [b"{", b"[]", b"3", b'{"layers": 1}', b'{"layers": {"a": {}}}', b"[" * 9000])
def test_a_damaged_description_is_refused(smallest: Case, tmp_path: Path, text: bytes) -> None:
    with pytest.raises(UserError, match="its description of quantized layers cannot be read"):
        converted(smallest, weights_of(smallest), tmp_path, {"_quantization_metadata": text.decode()})
