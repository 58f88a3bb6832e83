"""The infotext of AUTOMATIC1111's web UI, which Forge, SD.Next and others write, too.

The prompt, `Negative prompt: ` and one line of `name: value` with commas between, in which values with a comma or colon
are JSON strings (modules/infotext_utils.py, `parse_generation_parameters`).
"""

from __future__ import annotations

import json
import re

from demo.app.server.foreign_parameters import ForeignParameters

_NEGATIVE = "Negative prompt:"
_FIELD = re.compile(r'\s*(\w[\w \-/]{0,100}):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')
_LORA = re.compile(r"\s*<(lora|hypernet|lyco):([^:<>]{1,200})((?::[^<>]{0,100})?)>")
_SCHEDULES = {
    "automatic": "legacy",
    "uniform": "legacy",
    "karras": "karras",
    "edm": "edm",
    "ddim": "leading",
    "sgm uniform": "trailing",
}
_INTEGERS = {"steps": "sample_step", "seed": "seed"}
_FLOATS = {"cfg scale": "guidance_scale", "denoising strength": "strength", "eta": "eta"}
_UNINTERESTING = ("version", "model hash", "vae hash", "ti hashes", "lora hashes", "hashes")


def parse(text: str) -> ForeignParameters:
    """Return the parameters in an infotext; those of a text that is none are a prompt alone."""
    parameters = ForeignParameters("AUTOMATIC1111")
    lines = text.strip().split("\n")
    fields = _FIELD.findall(lines[-1])
    if len(fields) < 3:  # as AUTOMATIC1111 decides whether the last line holds fields
        fields = []
    else:
        lines.pop()
    prompt, separator, negative = "\n".join(["", *lines]).partition(f"\n{_NEGATIVE}")
    parameters.options["prompt"] = _without_loras(prompt.strip(), parameters)
    parameters.options["negative_prompt"] = negative.strip() if separator else ""
    for name, value in fields:
        _set(name.strip(), _unquote(value.strip()), parameters)
    return parameters


def _set(name: str, value: str, parameters: ForeignParameters) -> None:
    key = name.lower()
    if key in _INTEGERS:
        parameters.set_int(_INTEGERS[key], name, value)
    elif key in _FLOATS:
        parameters.set_float(_FLOATS[key], name, value)
    elif key == "sampler":
        _set_sampler(name, value, parameters)
    elif key == "schedule type":
        parameters.set_schedule(name, value, _SCHEDULES)
    elif key == "size" and (size := re.fullmatch(r"(\d{1,5})x(\d{1,5})", value)):
        parameters.options["width"], parameters.options["height"] = int(size[1]), int(size[2])
    elif key not in _UNINTERESTING:
        parameters.note(name, value)


def _set_sampler(name: str, value: str, parameters: ForeignParameters) -> None:
    """Set the sampler and, as before version 1.9, the schedule at the end of its name."""
    sampler, _, schedule = value.rpartition(" ")
    if parameters.set_sampler(name, value):
        parameters.options.setdefault("schedule", "legacy")
    elif schedule.lower() in _SCHEDULES and parameters.set_sampler(name, sampler):
        parameters.set_schedule(name, schedule, _SCHEDULES)
    else:
        parameters.note(name, value)


def _without_loras(prompt: str, parameters: ForeignParameters) -> str:
    """Return the prompt without the tags of LoRAs, which are not part of the prompt here, and note them."""
    for kind, name, strength in _LORA.findall(prompt):
        parameters.note({"lora": "LoRA", "lyco": "LoRA", "hypernet": "Hypernetwork"}[kind], name + strength)
    return _LORA.sub("", prompt)


def _unquote(value: str) -> str:
    if not value.startswith('"'):
        return value
    try:
        return str(json.loads(value))
    except ValueError:
        return value.strip('"')
