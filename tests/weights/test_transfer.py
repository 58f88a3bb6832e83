from __future__ import annotations

import dataclasses
import math
import signal
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor, ops
from safetensors.numpy import load_file
from safetensors.torch import save_file as save_torch

from gm import config as configuration
from gm import sdxl
from gm.errors import UserError
from gm.sdxl import SDXL
from gm.weights import containers, names, transfer
from gm.weights.lazy import LazyTensor, in_memory
from tests.reference.case import Case
from tests.reference.configs import DEEP
from tests.weights.files import lazy
from tests.workshop import Workshop


def assert_filled(model: SDXL, weights: dict[str, np.ndarray], half: bool = False) -> None:
    """Assert that every parameter has the published values; `half`: by way of float16."""
    for parameter in model.get_parameters():
        expected = weights[names.published_name(parameter.name)]
        expected = expected.astype(np.float16) if half else expected
        found = parameter.asnumpy()
        assert np.array_equal(found, expected.astype(found.dtype)), parameter.name


def layout(case: Case) -> names.Layout:
    return names.layout(case.model)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_there_and_back_is_the_same_file(any_case: Case, tmp_path: Path, dtype: str) -> None:
    case = any_case
    published, checkpoint, again = (tmp_path / name for name in ("a.safetensors", "b.ckpt", "c.safetensors"))
    tensors = {name: array.astype(dtype) for name, array in case.weights.items()}
    containers.write(published, lazy(tensors), {"format": "pt"})
    transfer.convert(published, checkpoint, case.config, dtype)
    transfer.convert(checkpoint, again, case.config, dtype)
    assert again.read_bytes() == published.read_bytes()
    transfer.convert(checkpoint, tmp_path / "d.ckpt", case.config, dtype)
    assert (tmp_path / "d.ckpt").read_bytes() == checkpoint.read_bytes()


def test_mindspore_itself_loads_a_converted_checkpoint(smallest: Case, tmp_path: Path) -> None:
    transfer.convert(smallest.path, tmp_path / "a.ckpt", smallest.config, "float32")
    parameters = ms.load_checkpoint(str(tmp_path / "a.ckpt"))
    assert list(parameters) == list(layout(smallest))
    model = sdxl.build(smallest.config)
    assert ms.load_param_into_net(model, parameters, strict_load=True) == ([], [])
    assert_filled(model, smallest.weights)


def test_what_mindspore_saved_of_a_model_converts(smallest: Case, tmp_path: Path) -> None:
    ms.save_checkpoint(smallest.model, str(tmp_path / "a.ckpt"))
    transfer.convert(tmp_path / "a.ckpt", tmp_path / "b.safetensors", smallest.config, "float32")
    converted = load_file(tmp_path / "b.safetensors")
    assert set(converted) == set(smallest.weights)
    assert all(np.array_equal(converted[name], array) for name, array in smallest.weights.items())


def test_what_is_stored_beside_the_weights_is_left_out(smallest: Case, tmp_path: Path) -> None:
    ids = {"conditioner.embedders.0.transformer.text_model.embeddings.position_ids": np.arange(30)[None]}
    levels = {"denoiser.sigmas": np.ones(1000, np.float32)}
    containers.write(tmp_path / "a.safetensors", lazy(smallest.weights | ids | levels))
    transfer.convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", smallest.config, "float32")
    assert set(load_file(tmp_path / "b.safetensors")) == set(smallest.weights)


@pytest.mark.parametrize("ending", containers.ENDINGS)
@pytest.mark.parametrize("dtype", [ms.float32, ms.float16])
def test_a_model_is_filled_and_keeps_its_types(smallest: Case, tmp_path: Path, ending: str, dtype: ms.Type) -> None:
    transfer.convert(smallest.path, tmp_path / f"a{ending}", smallest.config, "float16")
    model = sdxl.build(smallest.config, dtype)
    types = {parameter.name: parameter.dtype for parameter in model.get_parameters()}
    transfer.load(model, tmp_path / f"a{ending}", smallest.config)
    model.init_parameters_data()  # what MindSpore does before it runs a network; must not undo the loading
    assert {parameter.name: parameter.dtype for parameter in model.get_parameters()} == types
    assert {ms.float32, dtype} == set(types.values())
    assert not any(parameter.requires_grad for parameter in model.get_parameters())
    assert_filled(model, smallest.weights, half=True)


def test_a_loaded_model_outlives_its_file(smallest: Case, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    transfer.convert(smallest.path, path, smallest.config, "float32")
    model = sdxl.build(smallest.config)
    transfer.load(model, path, smallest.config)
    zeros = {name: np.zeros_like(array) for name, array in smallest.weights.items()}
    containers.write(path, lazy(zeros))  # as everything here writes: beside its place, then renamed into it
    assert_filled(model, smallest.weights)
    path.unlink()
    assert_filled(model, smallest.weights)


def test_a_loaded_model_computes(smallest: Case) -> None:
    model = sdxl.build(smallest.config)
    transfer.load(model, smallest.path, smallest.config)
    latents = Tensor(np.random.default_rng(1).standard_normal((1, 8, 4, 4), dtype=np.float32))
    ours, expected = (m.first_stage_model.decode(latents).asnumpy() for m in (model, smallest.model))
    assert np.array_equal(ours, expected)


def test_bfloat16_on_either_side(smallest: Case, tmp_path: Path) -> None:
    save_torch(
        {name: torch.from_numpy(array).bfloat16() for name, array in smallest.weights.items()},
        tmp_path / "a.safetensors",
    )
    rounded = {name: torch.from_numpy(a).bfloat16().float().numpy() for name, a in smallest.weights.items()}
    transfer.convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", smallest.config, "float32")
    converted = load_file(tmp_path / "b.safetensors")
    assert all(np.array_equal(converted[name], array) for name, array in rounded.items())
    model = sdxl.build(smallest.config, ms.bfloat16)
    transfer.load(model, smallest.path, smallest.config)
    for parameter in model.get_parameters():
        values = rounded if parameter.dtype == ms.bfloat16 else smallest.weights
        assert np.array_equal(parameter.float().asnumpy(), values[names.published_name(parameter.name)])


def test_too_large_for_float16_leaves_no_file(smallest: Case, tmp_path: Path) -> None:
    name = next(name for name in reversed(smallest.weights) if name.endswith("conv_out.weight"))
    tensors = {n: array.copy() for n, array in smallest.weights.items()}
    tensors[name].flat[5] = 1e5
    containers.write(tmp_path / "a.safetensors", lazy(tensors))
    with pytest.raises(UserError, match=f"{name} holds 100000, too large for float16"):
        transfer.convert(tmp_path / "a.safetensors", tmp_path / "b.ckpt", smallest.config, "float16")
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def stored(case: Case) -> dict[str, LazyTensor]:
    return {name: in_memory(np.zeros(shape, np.float16)) for name, shape in layout(case).items()}


def message(case: Case, tensors: dict[str, LazyTensor]) -> str:
    with pytest.raises(UserError) as caught:
        transfer.check(layout(case), tensors, "some.ckpt", case.config.kind)
    assert str(caught.value).startswith("some.ckpt does not fit the model of")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_fits_passes(smallest: Case) -> None:
    transfer.check(layout(smallest), stored(smallest), "some.ckpt", "base")


def test_each_kind_of_misfit_is_found_counted_and_named(smallest: Case) -> None:
    tensors = stored(smallest)
    gone = list(tensors)[10:15]
    for name in gone:
        del tensors[name]
    text = message(smallest, tensors)
    assert f"5 missing ({gone[0]}, {gone[1]}, {gone[2]} and 2 more)" in text
    assert "incomplete or changed" in text
    text = message(smallest, stored(smallest) | {"extra.weight": in_memory(np.zeros(1))})
    assert text.endswith("1 unexpected (extra.weight)")
    name, shape = next(iter(layout(smallest).items()))
    text = message(smallest, stored(smallest) | {name: in_memory(np.zeros((*shape, 1)))})
    assert text.endswith(f"1 of another shape ({name} {[*shape, 1]} instead of {list(shape)})")


@pytest.mark.parametrize(
    ("meaning", "found"),
    [
        ("LoRA", ["lora_unet_down_blocks_0.lora_up.weight", "text_model.x"]),
        ("LoRA", ["unet.mid_block.attentions.0.to_q.lora_A.weight"]),
        ("learned concept", ["clip_l", "clip_g"]),
        ("learned concept", ["<cat-toy>"]),
        ("learned concept", ["conditioner.embedders.1.model.token_embedding.embedding_table", "num_vectors"]),
        ("Stable Diffusion 1;", ["cond_stage_model.transformer.text_model.final_layer_norm.weight"]),
        ("Stable Diffusion 2;", ["cond_stage_model.model.ln_final.weight"]),
        ("refiner", ["conditioner.embedders.0.model.ln_final.weight"]),
        ("ControlNet", ["control_model.input_blocks.0.0.weight"]),
        ("Flux", ["model.diffusion_model.double_blocks.0.img_mod.lin.weight"]),
        ("one network", ["down_blocks.0.resnets.0.conv1.weight"]),
        ("config's model section", ["something.weight"]),
        ("config's model section", []),
    ],
)
def test_a_file_of_another_kind_is_called_what_it_is(smallest: Case, meaning: str, found: list[str]) -> None:
    assert meaning in message(smallest, {name: in_memory(np.zeros(1)) for name in found})


def test_each_kind_of_model_is_called_what_it_is_where_the_other_is_wanted(smallest: Case, refiner: Case) -> None:
    text = message(smallest, stored(refiner))
    assert "it seems to be the SDXL refiner, which goes to --pipeline_weight and is converted with --config " in text
    assert "configs/sampling/sd_xl_refiner.yaml; use the SDXL base model; " in text
    text = message(refiner, stored(smallest))
    assert "it seems to be the SDXL base model, which goes to --weight and" in text
    assert "with the --config of a base model; use the SDXL refiner; " in text
    lora = {"lora_unet.lora_up.weight": in_memory(np.zeros(1))}
    assert "a LoRA, which changes a model and is none; use the SDXL refiner; " in message(refiner, lora)
    assert "a LoRA, which changes a model and is none; use the SDXL base model; " in message(smallest, lora)
    word = {"conditioner.embedders.1.model.token_embedding.embedding_table": in_memory(np.zeros(1))}
    assert "a learned concept" in message(refiner, word)


def test_a_refiner_of_other_sizes_points_to_the_config(refiner: Case) -> None:
    other = dataclasses.replace(refiner.config, unet=dataclasses.replace(refiner.config.unet, model_channels=32))
    with pytest.raises(UserError, match="config's model section describes another model"):
        transfer.load(sdxl.build(other), refiner.path, other)


def test_what_the_workshop_wrote_of_a_refiner_loads(workshop: Workshop) -> None:
    config = configuration.load(workshop.folder / "refiner.yaml").model
    model = sdxl.build(config)
    transfer.load(model, workshop.folder / "refiner.ckpt", config)
    assert model.config.kind == "refiner"
    base = workshop.config().model
    assert config.autoencoder == base.autoencoder  # it goes on with the base's latents
    assert config.text_encoder_2.width == base.text_encoder_2.width  # and hears its learned rows
    latents = Tensor(np.random.default_rng(1).standard_normal((1, 4, 4, 4), dtype=np.float32))
    assert np.isfinite(model.first_stage_model.decode(latents).asnumpy()).all()


def test_a_model_of_other_sizes_points_to_the_config(smallest: Case) -> None:
    with pytest.raises(UserError, match="config's model section describes another model"):
        transfer.load(sdxl.build(DEEP), smallest.path, DEEP)


def test_nothing_is_converted_that_does_not_fit(smallest: Case, tmp_path: Path) -> None:
    containers.write(tmp_path / "a.safetensors", lazy(smallest.weights | {"extra": np.zeros(1)}))
    with pytest.raises(UserError, match=r"1 unexpected \(extra\)"):
        transfer.convert(tmp_path / "a.safetensors", tmp_path / "b.ckpt", smallest.config, "float32")
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_nothing_is_loaded_from_a_file_that_does_not_fit(smallest: Case, tmp_path: Path) -> None:
    tensors = dict(smallest.weights)
    tensors.popitem()
    containers.write(tmp_path / "a.safetensors", lazy(tensors))
    model = sdxl.build(smallest.config)
    with pytest.raises(UserError, match="1 missing"):
        transfer.load(model, tmp_path / "a.safetensors", smallest.config)
    assert all(parameter.has_init for parameter in model.get_parameters())


KILLED = """
import os, signal, sys
from gm.weights import transfer
from tests.reference.configs import CONFIGS
source, target, name = sys.argv[1:]
transfer.convert(source, target, CONFIGS[name], "float16", lambda done, total: os.kill(os.getpid(), signal.SIGKILL))
"""


def test_a_killed_conversion_leaves_no_target_and_the_next_one_tidies_up(smallest: Case, tmp_path: Path) -> None:
    target = tmp_path / "a.ckpt"
    words = [sys.executable, "-c", KILLED, str(smallest.path), str(target), smallest.name]
    process = subprocess.Popen(words)
    assert process.wait() == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == [f".a.ckpt.{process.pid}.0.tmp"]
    transfer.convert(smallest.path, target, smallest.config, "float16")
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]


def test_what_needs_no_cast_stays_in_the_pages_of_its_file(smallest: Case, tmp_path: Path) -> None:
    containers.write(tmp_path / "a.safetensors", lazy(smallest.weights))
    before = (tmp_path / "a.safetensors").read_bytes()
    model = sdxl.build(smallest.config)
    transfer.load(model, tmp_path / "a.safetensors", smallest.config)
    mapped = Path("/proc/self/smaps").read_text().partition(str(tmp_path / "a.safetensors"))[2]
    assert int(mapped.partition("Private_Dirty:")[2].split()[0]) == 0
    for parameter in model.get_parameters():
        ops.assign(parameter, parameter * 0 + 7)
    assert (tmp_path / "a.safetensors").read_bytes() == before
    mapped = Path("/proc/self/smaps").read_text().partition(str(tmp_path / "a.safetensors"))[2]
    assert int(mapped.partition("Private_Dirty:")[2].split()[0]) > 0.9 * len(before) / 1024


def test_a_cast_lets_the_file_go(smallest: Case, tmp_path: Path) -> None:
    transfer.convert(smallest.path, tmp_path / "half.safetensors", smallest.config, "float16")
    model = sdxl.build(smallest.config)
    transfer.load(model, tmp_path / "half.safetensors", smallest.config)
    kept = [p for p in model.get_parameters() if p.dtype == ms.float32]
    for parameter in kept:
        ops.assign(parameter, parameter * 0 + 7)
    mapped = Path("/proc/self/smaps").read_text().partition(str(tmp_path / "half.safetensors"))[2]
    assert not mapped or int(mapped.partition("Rss:")[2].split()[0]) == 0


def test_large_weights_stay_as_narrow_as_their_file(smallest: Case, tmp_path: Path) -> None:
    """Only those that are large and narrow there: the rest is what the model asks for."""
    transfer.convert(smallest.path, tmp_path / "half.safetensors", smallest.config, "float16")
    layout = names.layout(sdxl.build(smallest.config))
    large = {name for name, shape in layout.items() if np.prod(shape) >= 1000}
    assert 0 < len(large) < len(layout)
    for source, narrow in ((tmp_path / "half.safetensors", large), (smallest.path, set())):
        model = sdxl.build(smallest.config)
        transfer.load(model, source, smallest.config, widened=1000)
        assert {p.name for p in model.get_parameters() if p.dtype == ms.float16} == narrow
        assert {p.dtype for p in model.get_parameters()} <= {ms.float16, ms.float32}
        assert not any(parameter.requires_grad for parameter in model.get_parameters())
        assert_filled(model, smallest.weights, half=source != smallest.path)


def test_weights_that_do_not_fit_are_said_before(
    smallest: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def said(path: Path, free: int, widened: float = math.inf) -> list[str]:
        caplog.clear()
        monkeypatch.setattr(transfer, "memory_available", lambda: free)
        transfer.load(sdxl.build(smallest.config), path, smallest.config, widened)
        return caplog.messages

    size = sum(parameter.size * 4 for parameter in sdxl.build(smallest.config).get_parameters())
    half = tmp_path / "half.ckpt"
    transfer.convert(smallest.path, half, smallest.config, "float16")
    assert said(half, size) == []
    (one,) = said(half, size - 1)
    assert one.endswith("GB are free: --low_memory most keeps float16 weights half as large")
    assert said(half, size - 1, widened=1) == []
    # What cannot be kept narrower is not advised.
    for path, widened in ((half, 1), (smallest.path, math.inf)):
        (one,) = said(path, 1, widened)
        assert one.endswith("GB are free: close other programs")


def test_the_memory_that_is_free_is_known() -> None:
    assert transfer.memory_available() > 1e8
