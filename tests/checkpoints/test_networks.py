"""gm/checkpoints/networks.py: a UNet or VAE from a file of its own, and checkpoints that lack one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gm.checkpoints import containers, loading
from gm.checkpoints.networks import NETWORKS, WeightFiles, check_paths
from gm.errors import UserError
from gm.models import stable_diffusion
from tests.checkpoints.diffusers_folders import save_diffusers_folder
from tests.checkpoints.files import lazy
from tests.reference.case import Case

Weights = dict[str, np.ndarray]
UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "conditioner."


def others(case: Case) -> Weights:
    """Return other weights for the model: those of a file that is given beside the checkpoint."""
    return {name: np.asarray(array + np.float32(0.5)) for name, array in case.weights.items()}


def part(weights: Weights, prefix: str, new_prefix: str = "") -> Weights:
    return {new_prefix + n.removeprefix(prefix): array for n, array in weights.items() if n.startswith(prefix)}


def without(weights: Weights, prefix: str) -> Weights:
    return {name: array for name, array in weights.items() if not name.startswith(prefix)}


def assert_converts(files: WeightFiles, expected: Weights, case: Case, folder: Path) -> None:
    """Assert that both converting and loading give the `expected` weights."""
    loading.convert(files, folder / "out.safetensors", case.config, "float32")
    converted = load_file(folder / "out.safetensors")
    assert set(converted) == set(expected)
    for name, array in expected.items():
        assert np.array_equal(converted[name], array), name
    model = stable_diffusion.build(case.config)
    loading.load_weights(model, files, case.config)
    for parameter in model.get_parameters():
        assert np.array_equal(parameter.asnumpy(), expected[loading.published_name(parameter.name)]), parameter.name


def refusal(files: WeightFiles | Path, case: Case, folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        loading.convert(files, folder / "out.ckpt", case.config, "float32")
    with pytest.raises(UserError, match=re.escape(str(caught.value))):
        loading.load_weights(stable_diffusion.build(case.config), files, case.config)
    assert not (folder / "out.ckpt").exists()
    return str(caught.value)


def meant(case: Case, network: str) -> Weights:
    """Return the weights of the model with the network of `others`."""
    return without(case.weights, NETWORKS[network].prefix) | {
        name: array for name, array in others(case).items() if name.startswith(NETWORKS[network].prefix)
    }


def spoilt(case: Case, network: str) -> Weights:
    """Return the weights of the model with a NaN in the network."""
    name = [name for name in case.weights if name.startswith(NETWORKS[network].prefix)][-1]
    return case.weights | {name: np.full_like(case.weights[name], np.nan)}


WAYS: dict[str, Callable[[Weights, str], Weights]] = {
    "bare": lambda weights, prefix: part(weights, prefix),
    "published": lambda weights, prefix: part(weights, prefix, prefix),
    "prefixed": lambda weights, prefix: part(weights, prefix, {VAE: "vae.", UNET: "diffusion_model."}[prefix]),
    "whole": lambda weights, prefix: weights,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("checkpoint", ["with it", "without it", "with a bad one"])
def test_a_file_of_a_network_replaces_that_of_the_checkpoint(
    smallest: Case, tmp_path: Path, network: str, way: str, checkpoint: str
) -> None:
    prefix = NETWORKS[network].prefix
    base = {
        "with it": smallest.weights,
        "without it": without(smallest.weights, prefix),
        "with a bad one": spoilt(smallest, network),
    }[checkpoint]
    save_file(base, tmp_path / "base.safetensors")
    save_file(WAYS[way](others(smallest), prefix), tmp_path / "network.safetensors")
    files = WeightFiles(tmp_path / "base.safetensors", {network: tmp_path / "network.safetensors"})
    assert_converts(files, meant(smallest, network), smallest, tmp_path)


@pytest.mark.parametrize("network", NETWORKS)
def test_a_network_of_a_mindspore_checkpoint_is_taken(smallest: Case, tmp_path: Path, network: str) -> None:
    containers.write(tmp_path / "whole.safetensors", lazy(others(smallest)))
    loading.convert(tmp_path / "whole.safetensors", tmp_path / "whole.ckpt", smallest.config, "float32")
    files = WeightFiles(smallest.path, {network: tmp_path / "whole.ckpt"})
    assert_converts(files, meant(smallest, network), smallest, tmp_path)
    prefix = NETWORKS[network].prefix
    tensors = containers.read(tmp_path / "whole.ckpt").tensors
    bare = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    containers.write(tmp_path / "bare.ckpt", bare)
    files = WeightFiles(smallest.path, {network: tmp_path / "bare.ckpt"})
    assert_converts(files, meant(smallest, network), smallest, tmp_path)


@pytest.mark.parametrize("network", NETWORKS)
def test_diffusers_files_and_folders_are_read(smallest: Case, tmp_path: Path, network: str) -> None:
    """The folder of the network, that of the model, and the file in it, with and without a prefix."""
    prefix = NETWORKS[network].prefix
    save_file(without(smallest.weights, prefix), tmp_path / "base.safetensors")
    folder = save_diffusers_folder(smallest, tmp_path / "model")
    path = folder / network / "diffusion_pytorch_model.safetensors"
    save_file(
        {f"{network}.{name}": array for name, array in load_file(path).items()}, tmp_path / "prefixed.safetensors"
    )
    for source in (folder, folder / network, path, tmp_path / "prefixed.safetensors"):
        files = WeightFiles(tmp_path / "base.safetensors", {network: source})
        assert_converts(files, smallest.weights, smallest, tmp_path)


@pytest.mark.parametrize("network", NETWORKS)
def test_a_diffusers_folder_without_a_network_is_completed(smallest: Case, tmp_path: Path, network: str) -> None:
    folder = save_diffusers_folder(smallest, tmp_path / "model")
    (folder / network / "diffusion_pytorch_model.safetensors").unlink()
    (folder / network / "config.json").unlink()
    (folder / network).rmdir()
    text = refusal(folder, smallest, tmp_path)
    assert text.endswith(f"has no {network}: it is incomplete; --{network} gives one of another place")
    files = WeightFiles(folder, {network: smallest.path})
    loading.convert(files, tmp_path / "out.safetensors", smallest.config, "float32")
    converted = load_file(tmp_path / "out.safetensors")
    assert all(np.array_equal(converted[n], a) for n, a in smallest.weights.items() if not n.endswith("logit_scale"))


def test_the_vae_of_another_model_is_refused_by_its_scaling_factor(smallest: Case, tmp_path: Path) -> None:
    folder = save_diffusers_folder(smallest, tmp_path / "model") / "vae"
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(described | {"scaling_factor": 0.18215}))
    text = refusal(WeightFiles(smallest.path, {"vae": folder}), smallest, tmp_path)
    ours = smallest.config.vae.scale_factor
    assert f"vae/config.json says scaling_factor 0.18215 instead of {ours}" in text
    file = folder / "diffusion_pytorch_model.safetensors"
    text = refusal(WeightFiles(smallest.path, {"vae": file}), smallest, tmp_path)
    assert f"vae/config.json says scaling_factor 0.18215 instead of {ours}" in text
    alone = file.rename(tmp_path / "alone.safetensors")  # nothing beside it says so
    assert_converts(WeightFiles(smallest.path, {"vae": alone}), smallest.weights, smallest, tmp_path)


def test_a_unet_that_predicts_v_is_refused(smallest: Case, tmp_path: Path) -> None:
    """Also where the rest comes from a checkpoint that predicts epsilon."""
    unet = part(smallest.weights, UNET)
    save_file(unet | {"v_pred": np.zeros(0, np.float32)}, tmp_path / "marked.safetensors")
    save_file(unet, tmp_path / "described.safetensors", {"modelspec.prediction_type": "v"})
    save_file(unet, tmp_path / "plain.safetensors")
    folder = save_diffusers_folder(smallest, tmp_path / "model")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text('{"prediction_type": "v_prediction"}')
    for name in ("marked.safetensors", "described.safetensors", "model"):
        text = refusal(WeightFiles(smallest.path, {"unet": tmp_path / name}), smallest, tmp_path)
        assert "prediction_type v_prediction instead of epsilon" in text
    files = WeightFiles(folder, {"unet": tmp_path / "plain.safetensors"})  # the scheduler went with the other UNet
    loading.convert(files, tmp_path / "out.ckpt", smallest.config, "float32")


def test_what_training_leaves_beside_a_vae_is_named_and_not_used(
    smallest: Case, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="gm")
    extra = {"loss.logvar": np.zeros(1, np.float32), "model_ema.decay": np.ones(1, np.float32)}
    save_file(part(others(smallest), VAE) | extra, tmp_path / "vae.safetensors")
    files = WeightFiles(smallest.path, {"vae": tmp_path / "vae.safetensors"})
    assert_converts(files, meant(smallest, "vae"), smallest, tmp_path)
    assert "2 tensors beside the VAE are not used (loss.logvar, model_ema.decay)" in caplog.text


def test_both_networks_can_be_given(smallest: Case, tmp_path: Path) -> None:
    """The text encoders of one file with the networks of another, which has no text encoders."""
    save_file(without(others(smallest), TEXT), tmp_path / "no_text.safetensors")
    path = tmp_path / "no_text.safetensors"
    files = WeightFiles(smallest.path, {"unet": path, "vae": path})
    expected = without(others(smallest), TEXT) | part(smallest.weights, TEXT, TEXT)
    assert_converts(files, expected, smallest, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: without(weights, VAE), "has no VAE; give one with --vae, such as sdxl_vae.safetensors"),
        (lambda weights: without(weights, UNET), "has no UNet; give one with --unet"),
        (
            lambda weights: without(weights, TEXT),
            "has no text encoders: give it with --unet and --vae, and a whole checkpoint of the model in its place",
        ),
        (
            lambda weights: part(weights, UNET),
            "is a UNet alone: give it with --unet, and a whole checkpoint of the model in its place",
        ),
        (
            lambda weights: part(weights, VAE),
            "is a VAE alone: give it with --vae, and a whole checkpoint of the model in its place",
        ),
    ],
    ids=["no VAE", "no UNet", "no text encoders", "UNet", "VAE"],
)
def test_a_checkpoint_that_lacks_a_network_names_the_option(
    smallest: Case, tmp_path: Path, change: Callable[[Weights], Weights], message: str
) -> None:
    save_file(change(smallest.weights), tmp_path / "a.safetensors")
    assert refusal(tmp_path / "a.safetensors", smallest, tmp_path) == f"{tmp_path / 'a.safetensors'} {message}"


def test_diffusers_unet_alone_is_named(smallest: Case, tmp_path: Path) -> None:
    path = save_diffusers_folder(smallest, tmp_path / "model") / "unet" / "diffusion_pytorch_model.safetensors"
    assert "is a UNet alone: give it with --unet" in refusal(path, smallest, tmp_path)


@pytest.mark.parametrize("network", NETWORKS)
def test_a_file_that_is_not_the_network_is_refused(smallest: Case, tmp_path: Path, network: str) -> None:
    prefix = NETWORKS[network].prefix
    bare = part(smallest.weights, prefix)
    name = next(name for name, array in bare.items() if array.ndim == 4)
    wrong = np.zeros((*bare[name].shape[:1], 9, *bare[name].shape[2:]), np.float32)
    files: dict[str, tuple[Weights, str]] = {
        "shape": (bare | {name: wrong}, rf"1 of another shape \({re.escape(prefix + name)} \[\d+, 9, \d, \d\] instead"),
        "extra": (bare | {"extra.weight": wrong}, rf"1 unexpected \({re.escape(prefix)}extra\.weight\)"),
        "cut": (dict(list(bare.items())[1:]), r"1 missing \("),
        "lora": ({"lora_unet_x.lora_up.weight": wrong}, "it seems to be a LoRA"),
        "older": (bare | {"cond_stage_model.x": wrong}, "is Stable Diffusion 1 or 2, whose .* is another;"),
        "nothing": ({"x": wrong}, f"holds no {NETWORKS[network].title}$"),
    }
    for tensors, message in files.values():
        save_file(tensors, tmp_path / "network.safetensors")
        text = refusal(WeightFiles(smallest.path, {network: tmp_path / "network.safetensors"}), smallest, tmp_path)
        assert text.startswith(f"--{network} {tmp_path / 'network.safetensors'} ")
        assert re.search(message, text)


@pytest.mark.parametrize("network", NETWORKS)
def test_values_of_a_network_are_checked_under_the_name_of_its_file(
    smallest: Case, tmp_path: Path, network: str
) -> None:
    save_file(spoilt(smallest, network), tmp_path / "nan.safetensors")
    files = WeightFiles(smallest.path, {network: tmp_path / "nan.safetensors"})
    assert refusal(files, smallest, tmp_path).startswith(f"{tmp_path / 'nan.safetensors'}: {NETWORKS[network].prefix}")


def test_a_refiner_without_its_vae_loads_where_it_uses_another(refiner: Case, tmp_path: Path) -> None:
    for name, weights in {"no": without(refiner.weights, VAE), "bad": spoilt(refiner, "vae")}.items():
        save_file(weights, tmp_path / f"{name}.safetensors")
        model = stable_diffusion.build(refiner.config)
        model.release_vae()
        loading.load_weights(model, tmp_path / f"{name}.safetensors", refiner.config, unused={"vae": None})
        for parameter in model.get_parameters():
            assert np.array_equal(parameter.asnumpy(), refiner.weights[loading.published_name(parameter.name)])
    with pytest.raises(UserError, match="has no VAE; give one with --vae"):
        loading.convert(tmp_path / "no.safetensors", tmp_path / "out.ckpt", refiner.config, "float32")


@pytest.mark.parametrize("networks", [{"vae": "sdxl_vea.safetensors"}, {"unet": "nowhere/unet"}])
def test_a_file_that_does_not_exist_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, networks: Mapping[str, str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sdxl_vae.safetensors").touch()
    ((network, path),) = networks.items()
    hint = "; did you mean 'sdxl_vae.safetensors'?" if network == "vae" else ""
    title = NETWORKS[network].title
    message = f"--{network} {path} does not exist{hint}; it names a file of the {title}, or a diffusers folder"
    with pytest.raises(UserError, match=re.escape(message)):
        check_paths(networks)
