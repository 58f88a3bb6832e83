"""The workflow that ComfyUI writes into images: under the PNG key `prompt`, a node by id with class and inputs.

An input is a value or a link, [id of a node, number of its output] (comfy's execution.py). What can be read of it are
the nodes of ComfyUI itself around the first sampler; nodes of extensions are followed where their inputs have the usual
names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from demo.app.server.foreign_parameters import ForeignParameters
from gm.errors import UserError

_SAMPLERS = ("KSampler", "KSamplerAdvanced", "SamplerCustom")
# "normal" spaces the timesteps evenly, as AUTOMATIC1111's default and this program's "legacy".
_SCHEDULES = {"normal": "legacy", "karras": "karras", "ddim_uniform": "leading", "sgm_uniform": "trailing"}
_SAMPLER_NAMES = {"pndm": "plms", "euler_cfg_pp": "", "dpmpp_2m_sde_gpu": "dpmpp_2m_sde"}
_TEXTS = ("text", "text_g", "text_l", "string", "value", "prompt")
_CONDITIONINGS = ("conditioning", "conditioning_1", "conditioning_to", "positive", "negative")
_MAX_DEPTH = 30  # links to follow to a value

Node = Mapping[str, Any]


def parse(workflow: Any) -> ForeignParameters:
    """Return the parameters in a workflow; UserError if no sampler is found in it."""
    nodes = _nodes(workflow)
    sampler = next((node for name in _SAMPLERS for node in nodes.values() if node["class_type"] == name), None)
    if sampler is None:
        raise UserError("the image's ComfyUI workflow has no KSampler, so that its parameters cannot be read")
    inputs = sampler["inputs"]
    parameters = ForeignParameters("ComfyUI")
    for option, input_ in (("prompt", "positive"), ("negative_prompt", "negative")):
        text = _text(nodes, inputs.get(input_), input_)
        if text is None:
            parameters.note(option.replace("_", " "), "made by nodes that are not known here")
        parameters.options[option] = text or ""
    for option, name in (("seed", "seed"), ("seed", "noise_seed"), ("sample_step", "steps")):
        if name in inputs:
            parameters.set_int(option, name, _value(nodes, inputs[name]))
    if "cfg" in inputs:
        parameters.set_float("guidance_scale", "cfg", _value(nodes, inputs["cfg"]))
    _set_sampler(nodes, inputs, parameters)
    _set_latents(nodes, inputs, parameters)
    _note_models(nodes, parameters)
    return parameters


def _nodes(workflow: Any) -> dict[str, Node]:
    """Return the nodes of a workflow that are what they should be."""
    if not isinstance(workflow, dict):
        return {}
    return {
        str(key): node
        for key, node in workflow.items()
        if isinstance(node, dict) and isinstance(node.get("class_type"), str) and isinstance(node.get("inputs"), dict)
    }


def _linked(nodes: Mapping[str, Node], value: Any) -> Node | None:
    """Return the node that a link leads to, None for a value or a broken link."""
    return nodes.get(str(value[0])) if isinstance(value, list) and len(value) == 2 else None


def _value(nodes: Mapping[str, Node], value: Any, depth: int = 0) -> Any:
    """Return the value of an input, also where a node of constants has it."""
    node = _linked(nodes, value)
    if node is None or depth > _MAX_DEPTH:
        return value
    name = next((each for each in ("value", "int", "float", "seed", "string") if each in node["inputs"]), None)
    return _value(nodes, node["inputs"][name], depth + 1) if name else value


def _text(nodes: Mapping[str, Node], value: Any, side: str, seen: frozenset[str] = frozenset()) -> str | None:
    """Return the text that a conditioning is of; None if it is not found.

    One way is followed, and no node twice: a workflow may have circles, and more ways than time.
    """
    if isinstance(value, str):
        return value
    node = _linked(nodes, value)
    if node is None or str(value[0]) in seen or len(seen) > _MAX_DEPTH:
        return None
    if node["class_type"] == "ConditioningZeroOut":
        return ""
    inputs = node["inputs"]
    names = [name for name in (*_TEXTS, *_CONDITIONINGS) if name in inputs]
    if side in names:  # of a node that takes both, such as ControlNet's
        names = [side]
    return _text(nodes, inputs[names[0]], side, seen | {str(value[0])}) if names else None


def _set_sampler(nodes: Mapping[str, Node], inputs: Node, parameters: ForeignParameters) -> None:
    selected = _linked(nodes, inputs.get("sampler"))  # of SamplerCustom
    name = _value(nodes, (selected["inputs"] if selected else inputs).get("sampler_name"))
    if name is not None and not parameters.set_sampler("sampler", _SAMPLER_NAMES.get(str(name), name)):
        parameters.note("sampler", name)
    scheduler = _linked(nodes, inputs.get("sigmas"))
    source = scheduler["inputs"] if scheduler else inputs
    if scheduler and "steps" in source:
        parameters.set_int("sample_step", "steps", _value(nodes, source["steps"]))
    if "scheduler" in source:
        parameters.set_schedule("scheduler", _value(nodes, source["scheduler"]), _SCHEDULES)


def _set_latents(nodes: Mapping[str, Node], inputs: Node, parameters: ForeignParameters) -> None:
    """Set the size of empty latents, or else the denoising strength, as the latents are of an image."""
    node = _linked(nodes, inputs.get("latent_image"))
    if node and {"width", "height"} <= node["inputs"].keys():
        for name in ("width", "height"):
            parameters.set_int(name, name, _value(nodes, node["inputs"][name]))
    elif node:
        if "denoise" in inputs:
            parameters.set_float("strength", "denoise", _value(nodes, inputs["denoise"]))
        parameters.note("init image", "not in the file; upload it")


def _note_models(nodes: Mapping[str, Node], parameters: ForeignParameters) -> None:
    for name, value in _model_files(nodes):
        parameters.note(name, value)


def _model_files(nodes: Mapping[str, Node]) -> Iterator[tuple[str, str]]:
    for node in nodes.values():
        for key, name in (("ckpt_name", "Model"), ("vae_name", "VAE"), ("lora_name", "LoRA"), ("unet_name", "UNet")):
            if isinstance(node["inputs"].get(key), str):
                yield name, node["inputs"][key]
