"""A model with LoRAs merged equals PyTorch networks with the LoRAs beside their layers, for every layout of files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from mindspore import Tensor
from safetensors.torch import save_file

from gm.checkpoints import loading
from gm.checkpoints.key_mapping import parameter_shapes
from gm.lora import merging
from gm.models import stable_diffusion
from gm.models.stable_diffusion import StableDiffusion
from tests.lora import side_path
from tests.lora.side_path import Factors, Layer
from tests.reference import inputs
from tests.reference.case import Case
from tests.reference.inputs import normal, relative_error

pytestmark = [pytest.mark.reference, pytest.mark.usefixtures("no_grad")]

TOLERANCE = 1e-5
Layout = Callable[[dict[Layer, Factors], Case], Factors]
Method = Callable[[Layer, Callable[..., torch.Tensor]], Factors]


def merged(case: Case, *loras: str) -> StableDiffusion:
    model = stable_diffusion.build(case.config)
    changes = merging.prepare(loras, parameter_shapes(model), case.config)
    loading.load_weights(model, case.path, case.config, changes=changes)
    return model


def outputs(case: Case, model: StableDiffusion | None) -> dict[str, np.ndarray]:
    """Return context, pooled vector and ε of our model, of PyTorch's without one."""
    prompts = inputs.prompts(case.config, 3, count=2)
    x = normal(5, 2, case.config.unet.in_channels, 8, 8)
    context = normal(6, 2, case.config.text_encoder_1.context_length, case.config.unet.context_dim)
    pooled, timesteps = normal(7, 2, case.config.text_encoder_2.width), np.array([20, 900], np.float32)
    reference = case.reference
    if model is None:
        hidden = reference.encode_text_1(prompts.ids_1, prompts.clip_l).numpy()
        hidden_2, text = reference.encode_text_2(prompts.ids_2, prompts.clip_g, prompts.pool_position)
        epsilon = reference.epsilon(x, timesteps, context, pooled, prompts.sizes).numpy()
        return {"clip_l": hidden, "clip_g": hidden_2.numpy(), "pooled": text.numpy(), "epsilon": epsilon}
    encoders = model.conditioner.embedders
    hidden = encoders[0].transformer(Tensor(prompts.ids_1), Tensor(prompts.clip_l))
    arguments = [Tensor(each) for each in (prompts.ids_2, prompts.clip_g, prompts.pool_position)]
    hidden_2, text = encoders[1].model(*arguments)
    y = reference.class_embedding(pooled, prompts.sizes).numpy()
    epsilon = model.unet(*(Tensor(each) for each in (x, timesteps, context, y)))
    named = {"clip_l": hidden, "clip_g": hidden_2, "pooled": text, "epsilon": epsilon}
    return {name: each.asnumpy() for name, each in named.items()}


def assert_equal(ours: dict[str, np.ndarray], expected: dict[str, np.ndarray], plain: dict[str, np.ndarray]) -> None:
    for name, values in expected.items():
        assert relative_error(ours[name], values) < TOLERANCE, name
        assert relative_error(values, plain[name]) > 0.05, f"the LoRA hardly changes {name}"


def factors_of(case: Case, method: Method, chosen: Callable[[Layer], bool], seed: int) -> dict[Layer, Factors]:
    values = side_path.random(seed)
    return {layer: method(layer, values) for layer in side_path.layers(case) if chosen(layer)}


def write(path: Path, tensors: Factors, metadata: dict[str, str] | None = None) -> Path:
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path, metadata)
    return path


def is_any(layer: Layer) -> bool:
    return True


def is_attention(layer: Layer) -> bool:
    return layer.is_attention


def is_even(layer: Layer) -> bool:
    return all(size % 2 == 0 for size in layer.shape[:2])


def is_of_unet(layer: Layer) -> bool:
    return layer.network == "unet"


LAYOUTS: dict[str, tuple[Layout, Method, Callable[[Layer], bool]]] = {
    "kohya, diffusers path": (side_path.kohya_diffusers_path, side_path.lora, is_any),
    "kohya, sgm path": (side_path.kohya_sgm_path, side_path.lora, is_any),
    "LoCon with lora_mid": (side_path.kohya_sgm_path, side_path.locon_mid, is_any),
    "LoHa": (side_path.kohya_diffusers_path, side_path.loha, is_any),
    "LoHa, Tucker": (side_path.kohya_sgm_path, side_path.loha_tucker, is_any),
    "LoKr": (side_path.kohya_sgm_path, side_path.lokr, is_even),
    "LoKr, products": (side_path.kohya_sgm_path, side_path.lokr_products, is_even),
    "PEFT": (side_path.peft, side_path.lora, is_any),
    "PEFT, named adapter": (side_path.peft_with_adapter_name, side_path.lora, is_any),
    "diffusers 0.20": (side_path.diffusers, side_path.lora, is_any),
    "diffusers 0.17": (side_path.diffusers_processors, side_path.lora, is_attention),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout(smallest: Case, tmp_path: Path, name: str) -> None:
    layout, method, chosen = LAYOUTS[name]
    factors = factors_of(smallest, method, chosen, len(name))
    tensors = layout(factors, smallest)
    path = write(tmp_path / "a.safetensors", tensors)
    if not any(key.endswith(".alpha") for key in tensors):
        factors = {layer: {k: v for k, v in each.items() if k != "alpha"} for layer, each in factors.items()}
    with side_path.attached([(factors, 0.5)]):
        expected = outputs(smallest, None)
    assert_equal(outputs(smallest, merged(smallest, f"{path}:0.5")), expected, outputs(smallest, None))


def test_the_names_of_mindone(smallest: Case, tmp_path: Path) -> None:
    factors = factors_of(smallest, side_path.lora, lambda layer: is_of_unet(layer) and is_attention(layer), 1)
    path = write(tmp_path / "a.safetensors", side_path.mindone(factors, smallest))
    scale_1 = {layer: {k: v for k, v in each.items() if k != "alpha"} for layer, each in factors.items()}
    with side_path.attached([(scale_1, 1.0)]):
        expected = outputs(smallest, None)["epsilon"]
    assert relative_error(outputs(smallest, merged(smallest, str(path)))["epsilon"], expected) < TOLERANCE


@pytest.mark.parametrize("kind", ["PEFT", "LyCORIS, outputs", "LyCORIS, inputs"])
def test_dora(smallest: Case, tmp_path: Path, kind: str) -> None:
    values = side_path.random(4)

    def dora(layer: Layer, normal: Callable[..., torch.Tensor]) -> Factors:
        factors = side_path.lora(layer, normal)
        ones = [1] * (layer.module.weight.ndim - 2)
        outputs, inputs = layer.shape[:2]
        if kind == "PEFT":
            shape = (1, outputs, *ones) if ones else (outputs,)
            return factors | {"lora_magnitude_vector": 1 + values(*shape)}
        return factors | {"dora_scale": 1 + values(*((outputs, 1) if "outputs" in kind else (1, inputs)), *ones)}

    factors = factors_of(smallest, dora, is_any, 8)
    if kind == "PEFT":
        tensors = side_path.peft_with_adapter_name(factors, smallest)
        factors = {layer: {k: v for k, v in each.items() if k != "alpha"} for layer, each in factors.items()}
    else:
        tensors = side_path.kohya_diffusers_path(factors, smallest)
    path = write(tmp_path / "a.safetensors", tensors)
    with side_path.attached([(factors, 0.7)]):
        expected = outputs(smallest, None)
    assert_equal(outputs(smallest, merged(smallest, f"{path}:0.7")), expected, outputs(smallest, None))


def test_several_loras_add_up_in_any_order(smallest: Case, tmp_path: Path) -> None:
    first = factors_of(smallest, side_path.lora, is_any, 1)
    second = factors_of(smallest, side_path.loha, is_attention, 2)
    a = write(tmp_path / "a.safetensors", side_path.kohya_sgm_path(first, smallest))
    b = write(tmp_path / "b.safetensors", side_path.kohya_diffusers_path(second, smallest))
    with side_path.attached([(first, -0.5), (second, 1.5)]):
        expected = outputs(smallest, None)
    for loras in ([f"{a}:-0.5", f"{b}:1.5"], [f"{b}:1.5", f"{a}:-0.5"]):
        assert_equal(outputs(smallest, merged(smallest, *loras)), expected, outputs(smallest, None))


@pytest.mark.parametrize("rank_stabilized", [False, True])
def test_alpha_of_peft_is_in_the_metadata(smallest: Case, tmp_path: Path, rank_stabilized: bool) -> None:
    """diffusers from 0.34 stores PEFT's config, by which it scales; `alpha_pattern` is for single layers."""
    factors = factors_of(smallest, side_path.lora, is_any, 6)
    config = {f"{network}.r": side_path.RANK for network in ("unet", "text_encoder", "text_encoder_2")}
    config |= {"unet.lora_alpha": 5, "text_encoder.lora_alpha": 7, "text_encoder_2.lora_alpha": 4}
    config |= {"unet.alpha_pattern": {"to_q": 1, "down_blocks.0.attentions.0.proj_in": 9}}
    config |= {f"{network}.use_rslora": rank_stabilized for network in ("unet", "text_encoder", "text_encoder_2")}
    metadata = {"lora_adapter_metadata": json.dumps(config)}
    path = write(tmp_path / "a.safetensors", side_path.peft(factors, smallest), metadata)

    def alpha(layer: Layer) -> float:
        base = {"unet": 5.0, "text_encoder_1": 7.0, "text_encoder_2": 4.0}[layer.network]
        if layer.path.endswith(".to_q"):
            base = 1.0
        elif layer.path == "down_blocks.0.attentions.0.proj_in":
            base = 9.0
        return base * side_path.RANK**0.5 if rank_stabilized else base

    without = {layer: {k: v for k, v in each.items() if k != "alpha"} for layer, each in factors.items()}
    with side_path.attached([(without, 1.0)], alpha):
        expected = outputs(smallest, None)
    assert_equal(outputs(smallest, merged(smallest, str(path))), expected, outputs(smallest, None))


def test_every_layer_of_diffusers_and_transformers_has_a_name(like_base: Case) -> None:
    """Also the layers of a model with more levels than the one that is run."""
    from gm.lora.targets import targets

    by_name = targets(parameter_shapes(like_base.model), like_base.config)
    layers = side_path.layers(like_base)
    assert len(layers) > 150
    for layer in layers:
        names = [layer.name, side_path.KOHYA_PREFIXES[layer.network] + layer.path.replace(".", "_")]
        shapes = {by_name[name].shape for name in names}
        assert shapes == {tuple(layer.shape)}, layer.name


def test_diffusers_reads_the_sgm_names_as_the_same_layers(like_base: Case) -> None:
    from diffusers.loaders.lora_conversion_utils import _maybe_map_sgm_blocks_to_diffusers

    from gm.lora.targets import targets

    by_name = targets(parameter_shapes(like_base.model), like_base.config)
    sgm = [name for name in by_name if name.startswith("lora_unet_") and "put_blocks" in name and "_1_trans" in name]
    assert len(sgm) > 50
    unet = like_base.reference.unet.config
    converted = _maybe_map_sgm_blocks_to_diffusers({f"{name}.alpha": name for name in sgm}, unet)
    sides = {"input_blocks": "down_blocks", "output_blocks": "up_blocks"}
    for key, name in converted.items():
        for published, side in sides.items():
            key = key.replace(published, side)
        assert by_name[key.removesuffix(".alpha")] == by_name[name], name
