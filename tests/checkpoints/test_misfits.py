"""gm/checkpoints/loading.py: weights that do not fit the model are refused before they are read, and identified."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from mindspore import Tensor

from gm import config as configuration
from gm.checkpoints import containers, detect, key_mapping, loading
from gm.checkpoints.lazy_tensor import LazyTensor, in_memory
from gm.errors import UserError
from gm.models import stable_diffusion
from tests.checkpoints.files import lazy
from tests.project import Workshop
from tests.reference.case import Case
from tests.reference.configs import DEEP


def shapes(case: Case) -> key_mapping.ParameterShapes:
    return key_mapping.parameter_shapes(case.model)


def stored(case: Case) -> dict[str, LazyTensor]:
    return {name: in_memory(np.zeros(shape, np.float16)) for name, shape in shapes(case).items()}


def message(case: Case, tensors: dict[str, LazyTensor]) -> str:
    with pytest.raises(UserError) as caught:
        loading.check_tensors(shapes(case), tensors, "some.ckpt", case.config.kind)
    assert str(caught.value).startswith("some.ckpt does not fit the model of")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_matching_tensors_pass(smallest: Case) -> None:
    loading.check_tensors(shapes(smallest), stored(smallest), "some.ckpt", "base")


def test_each_kind_of_misfit_is_counted_and_named(smallest: Case) -> None:
    tensors = stored(smallest)
    removed = list(tensors)[10:15]
    for name in removed:
        del tensors[name]
    text = message(smallest, tensors)
    assert f"5 missing ({removed[0]}, {removed[1]}, {removed[2]} and 2 more)" in text
    assert "incomplete or changed" in text
    text = message(smallest, stored(smallest) | {"extra.weight": in_memory(np.zeros(1))})
    assert text.endswith("1 unexpected (extra.weight)")
    name, shape = next(iter(shapes(smallest).items()))
    text = message(smallest, stored(smallest) | {name: in_memory(np.zeros((*shape, 1)))})
    assert text.endswith(f"1 of another shape ({name} {[*shape, 1]} instead of {list(shape)})")


FRESH_COPY = "take a fresh copy"
UNET = "model.diffusion_model."


def test_a_fresh_copy_is_advised_only_where_tensors_are_missing(smallest: Case) -> None:
    tensors = stored(smallest)
    name, shape = next((name, shape) for name, shape in shapes(smallest).items() if name.startswith(UNET))
    missing = {key: tensor for key, tensor in tensors.items() if key != name}
    assert FRESH_COPY in message(smallest, missing)
    assert FRESH_COPY not in message(smallest, tensors | {"extra.weight": in_memory(np.zeros(1))})
    assert FRESH_COPY not in message(smallest, tensors | {name: in_memory(np.zeros((*shape, 2)))})
    assert FRESH_COPY not in message(smallest, missing | {f"{UNET}other": tensors[name]})


@pytest.mark.parametrize(
    ("description", "keys"),
    [
        ("an LCM that embeds the guidance scale (cond_proj)", ["time_embed.cond_proj.weight"]),
        ("a model with a LoRA that is not merged", ["middle_block.1.proj_in.lora_down.weight"]),
        ("a model with an IP-Adapter", ["middle_block.1.transformer_blocks.0.attn2.to_k_ip.weight"]),
        ("a model with AnimateDiff's motion modules", ["motion_modules.0.norm.weight"]),
        ("a quantized model", ["middle_block.1.proj_in.weight.absmax", "middle_block.1.proj_in.weight.quant_map"]),
    ],
)
def test_an_extended_model_is_identified(smallest: Case, description: str, keys: list[str]) -> None:
    text = message(smallest, stored(smallest) | {UNET + key: in_memory(np.zeros(1)) for key in keys})
    assert f"it seems to be {description}; use the SDXL base model; " in text
    assert FRESH_COPY not in text


@pytest.mark.parametrize(("channels", "model"), [(9, "an inpainting"), (4, "another"), (13, "another")])
def test_input_channels_identify_a_model(smallest: Case, channels: int, model: str) -> None:
    name = UNET + "input_blocks.0.0.weight"
    outputs, inputs, *kernel = shapes(smallest)[name]
    text = message(smallest, stored(smallest) | {name: in_memory(np.zeros((outputs, channels, *kernel)))})
    assert f"it seems to be {model} model, whose UNet has {channels} input channels instead of {inputs}; " in text


def test_instruct_pix2pix_is_identified_by_its_input_channels() -> None:
    channels = {UNET + "input_blocks.0.0.weight": ((320, 8, 3, 3), (320, 4, 3, 3))}
    text = detect.explain_misfit([], [], channels, "base")
    assert text.startswith("it seems to be an instruct-pix2pix model, whose UNet has 8 input channels instead of 4")


def test_fewer_transformer_blocks_are_a_distilled_model(smallest: Case) -> None:
    block = next(name for name in shapes(smallest) if ".transformer_blocks.0." in name).partition("blocks.0.")[0]
    tensors = {key: tensor for key, tensor in stored(smallest).items() if not key.startswith(f"{block}blocks.0.")}
    text = message(smallest, tensors)
    assert "its UNet has fewer transformer blocks, as distilled models such as SSD-1B and Vega have" in text
    cut = {key: tensor for key, tensor in tensors.items() if "middle_block" not in key or "norm" not in key}
    assert FRESH_COPY in message(smallest, cut)


@pytest.mark.parametrize(
    ("description", "keys"),
    [
        ("LoRA", ["lora_unet_down_blocks_0.lora_up.weight", "text_model.x"]),
        ("LoRA", ["unet.mid_block.attentions.0.to_q.lora_A.weight"]),
        ("an embedding file", ["clip_l", "clip_g"]),
        ("an embedding file", ["<cat-toy>"]),
        ("an embedding file", ["conditioner.embedders.1.model.token_embedding.embedding_table", "num_vectors"]),
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
def test_a_file_of_another_kind_is_identified(smallest: Case, description: str, keys: list[str]) -> None:
    assert description in message(smallest, {key: in_memory(np.zeros(1)) for key in keys})


def test_each_kind_of_model_is_identified_where_the_other_is_wanted(smallest: Case, refiner: Case) -> None:
    text = message(smallest, stored(refiner))
    assert "it seems to be the SDXL refiner, which goes to --pipeline_weight and is converted with --config " in text
    assert "configs/sampling/sd_xl_refiner.yaml; use the SDXL base model; " in text
    text = message(refiner, stored(smallest))
    assert "it seems to be the SDXL base model, which goes to --weight and" in text
    assert "with the --config of a base model; use the SDXL refiner; " in text
    lora = {"lora_unet.lora_up.weight": in_memory(np.zeros(1))}
    assert "a LoRA, which goes to --lora_weight beside a model; use the SDXL refiner; " in message(refiner, lora)
    assert "a LoRA, which goes to --lora_weight beside a model; use the SDXL base model; " in message(smallest, lora)
    embedding = {"conditioner.embedders.1.model.token_embedding.embedding_table": in_memory(np.zeros(1))}
    assert "an embedding file" in message(refiner, embedding)


def test_a_refiner_of_other_sizes_points_to_the_config(refiner: Case) -> None:
    other = dataclasses.replace(refiner.config, unet=dataclasses.replace(refiner.config.unet, model_channels=32))
    with pytest.raises(UserError, match="config's model section describes another model"):
        loading.load_weights(stable_diffusion.build(other), refiner.path, other)


def test_the_refiner_of_the_workshop_loads(workshop: Workshop) -> None:
    config = configuration.load(workshop.folder / "refiner.yaml").model
    model = stable_diffusion.build(config)
    loading.load_weights(model, workshop.folder / "refiner.ckpt", config)
    assert model.config.kind == "refiner"
    base = workshop.config().model
    assert config.vae == base.vae  # it continues from the base's latents
    assert config.text_encoder_2.width == base.text_encoder_2.width  # and uses its embedding vectors
    latents = Tensor(np.random.default_rng(1).standard_normal((1, 4, 4, 4), dtype=np.float32))
    assert np.isfinite(model.first_stage_model.decode(latents).asnumpy()).all()


def test_a_model_of_other_sizes_points_to_the_config(smallest: Case) -> None:
    with pytest.raises(UserError, match="config's model section describes another model"):
        loading.load_weights(stable_diffusion.build(DEEP), smallest.path, DEEP)


def test_nothing_is_converted_that_does_not_fit(smallest: Case, tmp_path: Path) -> None:
    containers.write(tmp_path / "a.safetensors", lazy(smallest.weights | {"extra": np.zeros(1)}))
    with pytest.raises(UserError, match=r"1 unexpected \(extra\)"):
        loading.convert(tmp_path / "a.safetensors", tmp_path / "b.ckpt", smallest.config, "float32")
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_nothing_is_loaded_from_a_file_that_does_not_fit(smallest: Case, tmp_path: Path) -> None:
    tensors = dict(smallest.weights)
    tensors.popitem()
    containers.write(tmp_path / "a.safetensors", lazy(tensors))
    model = stable_diffusion.build(smallest.config)
    with pytest.raises(UserError, match="1 missing"):
        loading.load_weights(model, tmp_path / "a.safetensors", smallest.config)
    assert all(parameter.has_init for parameter in model.get_parameters())
