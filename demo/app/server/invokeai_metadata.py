"""The metadata that InvokeAI writes into PNG files, in three forms.

`invokeai_metadata`, since version 3: JSON with a field for each parameter (invokeai/app/invocations/metadata.py).
`sd-metadata`, version 2: JSON with the parameters under `image`, or under `images` for a grid (ldm/invoke/args.py,
`metadata_dumps`). `Dream`, before: the prompt and switches, as typed at a command line (there, `dream_prompt_str`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from demo.app.server import compel_prompt
from demo.app.server.foreign_parameters import ForeignParameters
from gm.errors import UserError

KEY, SD_KEY, DREAM_KEY = "invokeai_metadata", "sd-metadata", "Dream"
_INTEGERS = {"seed": "seed", "steps": "sample_step", "width": "width", "height": "height"}
_FLOATS = {"cfg_scale": "guidance_scale", "strength": "strength"}
_RESCALE = "cfg_rescale_multiplier"
# diffusers' schedulers by InvokeAI's names (invokeai/backend/stable_diffusion/schedulers/schedulers.py); those that are
# not here have no counterpart. A name that ends in _k has Karras' sigmas.
_SAMPLERS = {
    "euler": "euler",
    "euler_a": "euler_ancestral",
    "heun": "heun",
    "lms": "lms",
    "dpmpp_2m": "dpmpp_2m",
    "dpmpp_2m_sde": "dpmpp_2m_sde",
    "lcm": "lcm",
    "ddim": "ddim",
    "pndm": "plms",
    "plms": "plms",
    # Version 2 (ldm/generate.py, `_set_sampler_legacy`).
    "k_euler": "euler",
    "k_euler_a": "euler_ancestral",
    "k_heun": "heun",
    "k_lms": "lms",
    "k_dpmpp_2": "dpmpp_2m",
    "k_dpmpp_2_a": "dpmpp_2s_ancestral",
}
_UNINTERESTING = (
    *("app_version", "app_id", "created_by", "rand_device", "model_hash", "orig_hash"),
    *("prompt", "positive_prompt", "negative_prompt", "image", "images"),  # read apart from the others
)
_MODELS = {"model": "Model", "vae": "VAE", "model_id": "Model", "model_weights": "Model"}
_MODES = ("txt2img", "img2img", "inpaint", "outpaint")
_SWITCHES = {
    "s": "steps",
    "S": "seed",
    "W": "width",
    "H": "height",
    "C": "cfg_scale",
    "A": "sampler",
    "f": "strength",
    "I": "init_img",
    "M": "init_mask",
    "G": "facetool_strength",
    "U": "upscale",
    "V": "variations",
}
# A switch is one letter, whose value may follow without a space, or a word after two hyphens.
_SWITCH = re.compile(
    r"\s-(?:-(?P<name>\w+)|(?P<letter>[A-Za-z]))(?=[\s\d./]|k_|ddim|plms|$)"
    r"(?P<value>(?:(?!\s-[-A-Za-z]).)*)"
)
_NEGATIVE = re.compile(r"\[(.*?)\]", re.DOTALL)


def parse(metadata: Mapping[str, Any]) -> ForeignParameters:
    """Return the parameters in the metadata of version 3 and later."""
    parameters = ForeignParameters("InvokeAI")
    for option, name in (("prompt", "positive_prompt"), ("negative_prompt", "negative_prompt")):
        text = metadata.get(name)
        parameters.options[option] = compel_prompt.translate(text) if isinstance(text, str) else ""
    for name, value in metadata.items():
        if name in ("positive_style_prompt", "negative_style_prompt"):
            if value and value != metadata.get(name.replace("style_", "")):
                parameters.note(_title(name), value)
        elif name == "scheduler":
            _set_scheduler(value, _is_sdxl(metadata), parameters)
        elif name == "generation_mode":
            _note_mode(value, parameters)
        else:
            _set(name, value, parameters)
    return parameters


def parse_sd(metadata: Mapping[str, Any]) -> ForeignParameters:
    """Return the parameters in the metadata of version 2; UserError if they name no image."""
    images = metadata.get("images")
    image = metadata.get("image") or (images[0] if isinstance(images, list) and images else None)
    if not isinstance(image, dict):
        raise UserError("the image's InvokeAI metadata has no image, so that its parameters cannot be read")
    parameters = ForeignParameters("InvokeAI")
    prompt = image.get("prompt")
    parts = [each for each in prompt if isinstance(each, dict)] if isinstance(prompt, list) else [{"prompt": prompt}]
    _set_prompts(" ".join(str(each.get("prompt") or "") for each in parts), parameters)
    if len(parts) > 1:
        parameters.note("Prompt weights", ", ".join(str(each.get("weight")) for each in parts))
    for name, value in {**metadata, **image}.items():
        if name == "sampler":
            _set_sampler(name, str(value), parameters)
        elif name == "type":
            _note_mode(value, parameters)
        elif name != "model":  # the word "stable diffusion"
            _set("strength" if name == "strength_steps" else name, value, parameters)
    return parameters


def parse_dream(text: str) -> ForeignParameters:
    """Return the parameters in the prompt and switches of a command line."""
    parameters = ForeignParameters("InvokeAI")
    text, _, model = text.partition(" # model_id=")
    first = _SWITCH.search(text)
    prompt, switches = (text[: first.start()], text[first.start() :]) if first else (text, "")
    _set_prompts(prompt.strip().strip('"'), parameters)
    for match in _SWITCH.finditer(switches):
        name = match["name"] or _SWITCHES.get(match["letter"], match["letter"])
        value = match["value"].strip()
        if name == "sampler":
            _set_sampler(name, value, parameters)
        elif name == "init_img":
            _note_mode("img2img", parameters)
        else:
            _set(name, value or True, parameters)
    _set("model_id", model.strip(), parameters)
    return parameters


def _set_prompts(text: str, parameters: ForeignParameters) -> None:
    """Set the prompts of version 2, where the negative prompt is in square brackets (ldm/invoke/conditioning.py)."""
    negative = " ".join(match[1].strip() for match in _NEGATIVE.finditer(text))
    positive = re.sub(" +", " ", _NEGATIVE.sub(" ", text)).strip() if negative else text.strip()
    parameters.options["prompt"] = compel_prompt.translate(positive)
    parameters.options["negative_prompt"] = compel_prompt.translate(negative)


def _set(name: str, value: Any, parameters: ForeignParameters) -> None:
    """Set the option that a field is of, or note the field unless it says that something is not used."""
    if name in _INTEGERS:
        parameters.set_int(_INTEGERS[name], name, value)
    elif name in _FLOATS and value is not None:
        parameters.set_float(_FLOATS[name], _title(name), value)
    elif name == _RESCALE and value:
        parameters.options["guider"] = "rescaled"
        parameters.set_float("guidance_rescale", _title(name), value)
    elif name in _MODELS and value:
        parameters.note(_MODELS[name], _model_name(value))
    elif name == "loras":
        for text in _loras(value):
            parameters.note("LoRA", text)
    elif value and name not in _UNINTERESTING:
        parameters.note(_title(name), value)


def _set_scheduler(value: Any, is_sdxl: bool, parameters: ForeignParameters) -> None:
    """Set sampler and schedule.

    Without Karras' sigmas the spacing is that of the model's scheduler config: "leading" in SDXL's, and by default in
    diffusers' DDIM and PNDM; "linspace", whose nearest is "legacy" here, in its others.
    """
    name = str(value)
    if not _set_sampler("scheduler", name, parameters):
        return
    is_leading = is_sdxl or name in ("ddim", "pndm")
    parameters.options["schedule"] = "karras" if name.endswith("_k") else "leading" if is_leading else "legacy"


def _set_sampler(name: str, value: str, parameters: ForeignParameters) -> bool:
    """Set the sampler or note that it is unknown; return whether it is known."""
    sampler = _SAMPLERS.get(value.removesuffix("_k"))
    if sampler is None:
        parameters.note(_title(name), value)
        return False
    parameters.options["sampler"] = sampler
    return True


def _note_mode(value: Any, parameters: ForeignParameters) -> None:
    """Note an init image, which no file holds, or a mode of models that are none of this program's."""
    mode = str(value).removeprefix("sdxl_")
    if mode not in _MODES:
        parameters.note("generation mode", value)
    elif mode != "txt2img":
        parameters.note("init image", "not in the file; upload it" + (", and its mask" if "paint" in mode else ""))


def _is_sdxl(metadata: Mapping[str, Any]) -> bool:
    model = metadata.get("model")
    base = (model.get("base") or model.get("base_model")) if isinstance(model, dict) else None
    return str(base).startswith("sdxl") or str(metadata.get("generation_mode")).startswith("sdxl")


def _model_name(value: Any) -> Any:
    """Return the name of a model: `name` since version 4, `model_name` in version 3."""
    if not isinstance(value, dict):
        return value
    return value.get("name") or value.get("model_name") or value.get("key") or value


def _loras(value: Any) -> Iterator[str]:
    """Yield "name:weight" of each LoRA: under `model` since version 4, under `lora` in version 3."""
    for each in value if isinstance(value, list) else [value]:
        if isinstance(each, dict):
            weight = each.get("weight")
            name = _model_name(each.get("model") or each.get("lora"))
            yield str(name) if weight is None else f"{name}:{weight}"
        elif each:
            yield str(each)


def _title(name: str) -> str:
    return name.replace("_", " ")
