"""The card of a shared word, README.md: what it is, images with their recipes, and how each program uses it.

Its head is the YAML by which the Hub finds and shows it (https://huggingface.co/docs/hub/model-cards).
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from typing import Any

import yaml

from gm.hub.export import Publication
from gm.text.bpe import END

PAIR = ("learned_embeds.safetensors", "learned_embeds_2.safetensors")  # of diffusers: one for each text encoder
_WIDE = 10_000  # characters of a line of the head: one value, one line
_TAGS = ["text-to-image", "stable-diffusion-xl", "textual_inversion", "diffusers", "mindspore"]
# Of an image's recipe, what is worth a line under it.
_SHOWN = ("prompt", "negative_prompt", "seed", "sampler", "sample_step", "guidance_scale", "height", "width")


def text(made: Publication, shown: list[str]) -> str:
    """Return the card; `shown` are the places of the images, seen from the card."""
    concept, word = made.concept, _code(made.concept.placeholder_token)
    rows = "one row" if concept.num_vectors == 1 else f"{concept.num_vectors} rows"
    model = made.base_model or str(concept.metadata.get("version", "a model of SDXL's architecture"))
    parts = [
        f"---\n{_head(made, shown)}---",
        f"# {made.name}",
        f"{word} is a word that {_code(model)} learned by textual inversion from images of one {made.kind}: {rows} "
        f"in each text encoder, for any prompt, such as {_code(made.prompt)}."
        + ("" if made.licence else " No licence is given."),
        *_images(made, shown),
        "## How to use it",
        *_diffusers(made),
        f"**AUTOMATIC1111 and ComfyUI**: put {_code(made.name + '.safetensors')} into `embeddings/`; in a prompt the "
        f"word is {_code(made.name)} in the one and {_code('embedding:' + made.name)} in the other.",
        "**The MindSpore toolkit that learned it**, this folder being `word`:",
        _block("bash", _command(made)),
    ]
    if concept.metadata:
        parts += [
            "## How it was learned",
            _block("json", json.dumps(concept.metadata, indent=1, ensure_ascii=False)),
        ]
    return "\n\n".join(parts) + "\n"


def _head(made: Publication, shown: list[str]) -> str:
    head: dict[str, Any] = {"license": made.licence} if made.licence else {}
    if made.base_model:
        head["base_model"] = made.base_model
    head |= {"instance_prompt": made.prompt, "pipeline_tag": "text-to-image", "tags": _TAGS}
    widgets = [
        {"text": str(image.recipe.get("prompt", made.prompt)), "output": {"url": place}}
        for image, place in zip(made.images, shown, strict=True)
    ]
    if widgets:
        head["widget"] = widgets
    return str(yaml.safe_dump(head, sort_keys=False, allow_unicode=True, width=_WIDE))


def _images(made: Publication, shown: list[str]) -> list[str]:
    parts = ["## Images"] if shown else []
    for image, place in zip(made.images, shown, strict=True):
        parts += [f"![]({place})", _recipe(image.recipe)]
    return [part for part in parts if part]


def _recipe(recipe: Mapping[str, Any]) -> str:
    said = {name: recipe[name] for name in _SHOWN if recipe.get(name) not in (None, "")}
    return ", ".join(f"{name} {_code(str(value))}" for name, value in said.items())


def _diffusers(made: Publication) -> list[str]:
    place = made.repo or "."
    lines = [
        "import torch",
        "from diffusers import StableDiffusionXLPipeline",
        "",
        f"pipe = StableDiffusionXLPipeline.from_pretrained({made.base_model or '…'!r}, torch_dtype=torch.float16)",
        f'pipe.load_textual_inversion({place!r}, weight_name="{PAIR[0]}",',
        "                            text_encoder=pipe.text_encoder, tokenizer=pipe.tokenizer)",
        f'pipe.load_textual_inversion({place!r}, weight_name="{PAIR[1]}",',
        "                            text_encoder=pipe.text_encoder_2, tokenizer=pipe.tokenizer_2)",
        f'pipe.to("cuda")({made.prompt!r}).images[0].save("image.png")',
    ]
    where = "" if made.repo else ", in this folder"
    parts = [f"**diffusers**{where}:", _block("python", "\n".join(lines))]
    if made.concept.pooling == "end_of_text":
        parts.append(
            "It was learned with OpenCLIP's pooled vector taken at the end of the text, and diffusers takes it at the "
            f"word: `pipe.text_encoder_2.text_model.eos_token_id = {END}` before the last line makes it do the same."
        )
    return parts


def _command(made: Publication) -> str:
    pooling = "" if made.concept.pooling == "end_of_text" else f" --pooling {made.concept.pooling}"
    return (
        "python demo/sampling_without_streamlit.py --textual_inversion_weight word \\\n"
        f"    --prompt {shlex.quote(made.prompt)}{pooling}"
    )


def _code(said: str) -> str:
    """Return a text of any characters as Markdown shows it as it is, in one line."""
    said = " ".join(said.split())
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", said)), default=0))
    return f"{fence}{said}{fence}" if len(fence) == 1 else f"{fence} {said} {fence}"


def _block(language: str, said: str) -> str:
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", said)), default=0))
    return f"{fence}{language}\n{said}\n{fence}"
