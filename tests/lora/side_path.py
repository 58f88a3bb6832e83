"""Random LoRAs of PyTorch networks in every layout of files, and the networks with them beside the weights.

The formulas are computed here in torch, as PEFT and LyCORIS document them, and share no code with `gm.lora`: a plain
LoRA is two layers beside the frozen one, which is how it is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gm.checkpoints.diffusers_key_mapping import unet_key_mapping
from tests.reference.case import Case

Factors = dict[str, Tensor]
ALPHA, RANK = 3.0, 2
PREFIXES = {"unet": "unet.", "text_encoder_1": "text_encoder.", "text_encoder_2": "text_encoder_2."}
KOHYA_PREFIXES = {"unet": "lora_unet_", "text_encoder_1": "lora_te1_", "text_encoder_2": "lora_te2_"}


@dataclass(frozen=True)
class Layer:
    """A linear layer or convolution of one of the networks, by diffusers' or transformers' path."""

    network: str
    path: str
    module: nn.Linear | nn.Conv2d

    @property
    def name(self) -> str:
        return PREFIXES[self.network] + self.path

    @property
    def is_attention(self) -> bool:
        return self.path.endswith((".to_q", ".to_k", ".to_v", ".to_out.0", "q_proj", "k_proj", "v_proj", "out_proj"))

    @property
    def shape(self) -> torch.Size:
        return self.module.weight.shape


def layers(case: Case) -> list[Layer]:
    """Return all linear layers and convolutions of the UNet and the text encoders."""
    found = []
    for network in PREFIXES:
        for path, module in getattr(case.reference, network).named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                bare = network == "text_encoder_1" and not path.startswith("text_model.")  # transformers 5
                found.append(Layer(network, f"text_model.{path}" if bare else path, module))
    return found


def random(seed: int) -> Callable[..., Tensor]:
    """Return the function from a shape to normal values, small enough for a change as large as the weight."""
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: 0.15 * torch.randn(shape, generator=generator)


# Each returns the tensors of a layer by their names in LyCORIS' files, alpha included.


def lora(layer: Layer, normal: Callable[..., Tensor]) -> Factors:
    outputs, *inputs = layer.shape
    up = normal(outputs, RANK, *(1 for _ in inputs[1:]))
    return {"lora_down.weight": normal(RANK, *inputs), "lora_up.weight": up, "alpha": torch.tensor(ALPHA)}


def locon_mid(layer: Layer, normal: Callable[..., Tensor]) -> Factors:
    if layer.shape[2:] != (3, 3):
        return lora(layer, normal)
    outputs, inputs = layer.shape[:2]
    return {
        "lora_down.weight": normal(RANK, inputs, 1, 1),
        "lora_mid.weight": normal(RANK, RANK, 3, 3),
        "lora_up.weight": normal(outputs, RANK, 1, 1),
        "alpha": torch.tensor(ALPHA),
    }


def loha(layer: Layer, normal: Callable[..., Tensor]) -> Factors:
    outputs, inputs = layer.shape[0], layer.shape[1:].numel()
    a = {f"hada_w{n}_a": normal(outputs, RANK) for n in (1, 2)}
    return a | {f"hada_w{n}_b": normal(RANK, inputs) for n in (1, 2)} | {"alpha": torch.tensor(ALPHA)}


def loha_tucker(layer: Layer, normal: Callable[..., Tensor]) -> Factors:
    if layer.shape[2:] != (3, 3):
        return loha(layer, normal)
    outputs, inputs = layer.shape[:2]
    factors = {f"hada_t{n}": normal(RANK, RANK, 3, 3) for n in (1, 2)}
    factors |= {f"hada_w{n}_a": normal(RANK, outputs) for n in (1, 2)}
    return factors | {f"hada_w{n}_b": normal(RANK, inputs) for n in (1, 2)} | {"alpha": torch.tensor(ALPHA)}


def lokr(layer: Layer, normal: Callable[..., Tensor]) -> Factors:
    """α has no effect where no factor is a product, though files hold one."""
    outputs, inputs = layer.shape[:2]
    return {
        "lokr_w1": normal(2, 2),
        "lokr_w2": normal(outputs // 2, inputs // 2, *layer.shape[2:]),
        "alpha": torch.tensor(ALPHA),
    }


def lokr_products(layer: Layer, normal: Callable[..., Tensor]) -> Factors:
    outputs, inputs = layer.shape[:2]
    factors = {"lokr_w1_a": normal(2, RANK), "lokr_w1_b": normal(RANK, 2), "alpha": torch.tensor(ALPHA)}
    if layer.shape[2:] == (3, 3):
        factors |= {"lokr_t2": normal(RANK, RANK, 3, 3), "lokr_w2_a": normal(RANK, outputs // 2)}
        return factors | {"lokr_w2_b": normal(RANK, inputs // 2)}
    return factors | {"lokr_w2_a": normal(outputs // 2, RANK), "lokr_w2_b": normal(RANK, inputs // 2)}


def change(weight: Tensor, factors: Factors, default_alpha: float = RANK) -> Tensor:
    """Return the change of a weight that is not a plain LoRA's."""
    alpha = float(factors.get("alpha", default_alpha))
    if "hada_w1_a" in factors:
        product = torch.ones(())
        for n in (1, 2):
            a, b = factors[f"hada_w{n}_a"], factors[f"hada_w{n}_b"]
            core = factors.get(f"hada_t{n}")
            product = product * (a @ b if core is None else torch.einsum("pqkl,po,qi->oikl", core, a, b))
        delta = alpha / RANK * product.reshape(weight.shape)
    elif "lokr_w1" in factors:
        delta = torch.kron(factors["lokr_w1"][(..., *[None] * (weight.ndim - 2))], factors["lokr_w2"])
    elif "lokr_w1_a" in factors:
        first = factors["lokr_w1_a"] @ factors["lokr_w1_b"]
        a, b, core = factors["lokr_w2_a"], factors["lokr_w2_b"], factors.get("lokr_t2")
        second = a @ b if core is None else torch.einsum("pqkl,po,qi->oikl", core, a, b).contiguous()
        delta = alpha / RANK * torch.kron(first[(..., *[None] * (second.ndim - 2))], second).reshape(weight.shape)
    else:
        product = factors["lora_up.weight"].flatten(1) @ factors["lora_down.weight"].flatten(1)
        delta = alpha / RANK * product.reshape(weight.shape)
    magnitude = factors.get("dora_scale", factors.get("lora_magnitude_vector"))
    if magnitude is None:
        return delta
    changed = weight + delta
    axis = 1 if factors.get("dora_scale", torch.zeros(1)).ndim > 1 and magnitude.shape[0] == 1 else 0
    dims = [each for each in range(weight.ndim) if each != axis]
    norm = torch.linalg.vector_norm(changed, dim=dims, keepdim=True)
    return magnitude.reshape(norm.shape) * changed / norm - weight


def beside(module: nn.Module, x: Tensor, factors: Factors, default_alpha: float = RANK) -> Tensor:
    """Return what the factors add to the output of `module` for its input `x`."""
    if not isinstance(module, nn.Linear | nn.Conv2d):
        raise TypeError(type(module))
    if "lora_down.weight" not in factors or any("dora" in name or "magnitude" in name for name in factors):
        delta = change(module.weight, factors, default_alpha)
        if isinstance(module, nn.Linear):
            return F.linear(x, delta)
        return F.conv2d(x, delta, None, module.stride, module.padding)
    scale = float(factors.get("alpha", default_alpha)) / RANK
    down, up = factors["lora_down.weight"], factors["lora_up.weight"]
    if isinstance(module, nn.Linear):
        return scale * F.linear(F.linear(x, down), up)
    if "lora_mid.weight" in factors:
        hidden = F.conv2d(F.conv2d(x, down), factors["lora_mid.weight"], None, module.stride, module.padding)
    else:
        hidden = F.conv2d(x, down, None, module.stride, module.padding)
    return scale * F.conv2d(hidden, up)


@contextmanager
def attached(
    loras: list[tuple[dict[Layer, Factors], float]], alphas: Callable[[Layer], float] = lambda layer: RANK
) -> Iterator[None]:
    """Run the networks with LoRAs of these strengths beside their layers."""

    def hook(layer: Layer, factors: Factors, strength: float) -> Callable[..., Tensor]:
        return lambda module, arguments, y: y + strength * beside(module, arguments[0], factors, alphas(layer))

    with ExitStack() as hooks:
        for factors_of, strength in loras:
            for layer, factors in factors_of.items():
                handle = layer.module.register_forward_hook(hook(layer, factors, strength))
                hooks.callback(handle.remove)
        yield


# Each returns the keys of a file: the names of a program for the tensors of every layer.


def kohya_diffusers_path(factors_of: dict[Layer, Factors], case: Case) -> Factors:
    return {
        f"{KOHYA_PREFIXES[layer.network]}{layer.path.replace('.', '_')}.{name}": tensor
        for layer, factors in factors_of.items()
        for name, tensor in factors.items()
    }


def kohya_sgm_path(factors_of: dict[Layer, Factors], case: Case) -> Factors:
    rename = unet_key_mapping(case.config.unet)
    keys = {}
    for layer, factors in factors_of.items():
        path = rename(f"{layer.path}.").removesuffix(".") if layer.network == "unet" else layer.path
        for name, tensor in factors.items():
            keys[f"{KOHYA_PREFIXES[layer.network]}{path.replace('.', '_')}.{name}"] = tensor
    return keys


def _renamed(factors_of: dict[Layer, Factors], rename: Callable[[Layer, str], str]) -> Factors:
    return {
        rename(layer, name): tensor
        for layer, factors in factors_of.items()
        for name, tensor in factors.items()
        if name != "alpha"
    }


def peft(factors_of: dict[Layer, Factors], case: Case) -> Factors:
    names = {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight"}
    return _renamed(factors_of, lambda layer, name: f"{layer.name}.{names.get(name, name)}")


def peft_with_adapter_name(factors_of: dict[Layer, Factors], case: Case) -> Factors:
    names = {"lora_down.weight": "lora_A.default.weight", "lora_up.weight": "lora_B.default.weight"}
    names["lora_magnitude_vector"] = "lora_magnitude_vector.default.weight"
    return _renamed(factors_of, lambda layer, name: f"{layer.name}.{names[name]}")


def diffusers(factors_of: dict[Layer, Factors], case: Case) -> Factors:
    def rename(layer: Layer, name: str) -> str:
        direction = name.removeprefix("lora_").removesuffix(".weight")
        return f"{layer.name}.{'lora' if layer.network == 'unet' else 'lora_linear_layer'}.{direction}.weight"

    return _renamed(factors_of, rename)


def diffusers_processors(factors_of: dict[Layer, Factors], case: Case) -> Factors:
    def rename(layer: Layer, name: str) -> str:
        direction = name.removeprefix("lora_").removesuffix(".weight")
        if layer.network == "unet":
            head, _, tail = layer.name.removesuffix(".0").rpartition(".")
            return f"{head}.processor.{tail}_lora.{direction}.weight"
        head, _, tail = layer.name.removesuffix("_proj").rpartition(".")
        return f"{head}.to_{tail}_lora.{direction}.weight"

    return _renamed(factors_of, rename)


def mindone(factors_of: dict[Layer, Factors], case: Case) -> Factors:
    """Return the UNet's keys as mindone's SDXL example has them: its own parameter names."""
    rename = unet_key_mapping(case.config.unet)
    names = {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight"}
    return _renamed(
        factors_of,
        lambda layer, name: f"model.diffusion_model.{rename(f'{layer.path}.')}{names[name]}",
    )
