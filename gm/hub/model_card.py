"""Model card of a published embedding, README.md: example images, and how to use it in each program.

It begins with the YAML metadata by which the Hub lists it (https://huggingface.co/docs/hub/model-cards).
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from typing import Any

import yaml

from gm.embeddings.embedding import NO_POOLING, Embedding
from gm.hub.export import Publication
from gm.lora import files as lora_files
from gm.text.bpe import END

DIFFUSERS_FILES = ("learned_embeds.safetensors", "learned_embeds_2.safetensors")  # one per text encoder
_LINE_WIDTH = 10_000  # characters, so that each YAML value stays on one line
_TAGS = ["textual_inversion", "diffusers", "mindspore"]  # besides the task and the family of the model
# Generation parameters shown under an image.
_PARAMETERS = ("prompt", "negative_prompt", "seed", "sampler", "sample_step", "guidance_scale", "height", "width")


def diffusers_files(embedding: Embedding) -> tuple[str, ...]:
    """Return the names of diffusers' files, one per text encoder."""
    return DIFFUSERS_FILES[: len(embedding.vectors)]


def render(publication: Publication, image_names: list[str]) -> str:
    """Return the card; `image_names` are the paths of the images relative to it."""
    embedding = publication.embedding
    token = _code(embedding.placeholder_token)
    vectors = "one vector" if embedding.num_vectors == 1 else f"{embedding.num_vectors} vectors"
    vectors += " per text encoder" if len(embedding.vectors) > 1 else ""
    model = publication.base_model or str(embedding.metadata.get("version", _unnamed_model(embedding)))
    file_name = f"{publication.name}.safetensors"
    parts = [
        f"---\n{_metadata(publication, image_names)}---",
        f"# {publication.name}",
        f"{token} is a textual inversion embedding for {_code(model)}, trained on images of one "
        f"{publication.type_of_concept}: {vectors}. Use it in any prompt, such as "
        f"{_code(publication.instance_prompt)}." + ("" if publication.license else " No license is given."),
        *_loras(publication),
        *_images(publication, image_names),
        "## How to use it",
        *_diffusers(publication),
        f"**AUTOMATIC1111 and ComfyUI**: put {_code(file_name)} into `embeddings/`; in a prompt, write "
        f"{_code(publication.name)} in AUTOMATIC1111 and {_code('embedding:' + publication.name)} in ComfyUI.",
        "**The MindSpore toolkit that trained it**, with this folder as `embedding`:",
        _code_block("bash", _command(publication)),
    ]
    if embedding.metadata:
        parts += [
            "## Training parameters",
            _code_block("json", json.dumps(embedding.metadata, indent=1, ensure_ascii=False)),
        ]
    return "\n\n".join(parts) + "\n"


def _loras(publication: Publication) -> list[str]:
    """Return the LoRAs that were merged into the model in training, with which the embedding goes."""
    loras = lora_files.from_json(publication.embedding.metadata.get("loras"))
    if not loras:
        return []
    named = ", ".join(f"{_code(lora.name)} (strength {lora.strength:g}, hash {_code(lora.hash)})" for lora in loras)
    return [f"It was trained with LoRAs merged into the model, and should be used with them: {named}."]


def _metadata(publication: Publication, image_names: list[str]) -> str:
    metadata: dict[str, Any] = {"license": publication.license} if publication.license else {}
    if publication.base_model:
        metadata["base_model"] = publication.base_model
    metadata |= {
        "instance_prompt": publication.instance_prompt,
        "pipeline_tag": "text-to-image",
        "tags": _tags(publication),
    }
    widgets = [
        {"text": str(image.parameters.get("prompt", publication.instance_prompt)), "output": {"url": name}}
        for image, name in zip(publication.images, image_names, strict=True)
    ]
    if widgets:
        metadata["widget"] = widgets
    return str(yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True, width=_LINE_WIDTH))


def _unnamed_model(embedding: Embedding) -> str:
    """Return the model of an embedding whose file does not name it, by its text encoders."""
    if embedding.pooling != NO_POOLING:
        return "a model of SDXL's architecture"
    return "Stable Diffusion 2" if "clip_h" in embedding.vectors else "Stable Diffusion 1"


def _tags(publication: Publication) -> list[str]:
    family = "stable-diffusion" if publication.embedding.pooling == NO_POOLING else "stable-diffusion-xl"
    return ["text-to-image", family, *_TAGS]


def _images(publication: Publication, image_names: list[str]) -> list[str]:
    parts = ["## Images"] if image_names else []
    for image, name in zip(publication.images, image_names, strict=True):
        parts += [f"![]({name})", _describe_parameters(image.parameters)]
    return [part for part in parts if part]


def _describe_parameters(parameters: Mapping[str, Any]) -> str:
    selected = {name: parameters[name] for name in _PARAMETERS if parameters.get(name) not in (None, "")}
    return ", ".join(f"{name} {_code(str(value))}" for name, value in selected.items())


def _diffusers(publication: Publication) -> list[str]:
    repo = publication.repo or "."
    base_model = publication.base_model or "…"
    is_of_sd = publication.embedding.pooling == NO_POOLING
    pipeline = "StableDiffusionPipeline" if is_of_sd else "StableDiffusionXLPipeline"
    load = [
        f'pipe.load_textual_inversion({repo!r}, weight_name="{DIFFUSERS_FILES[0]}",',
        "                            text_encoder=pipe.text_encoder, tokenizer=pipe.tokenizer)",
        f'pipe.load_textual_inversion({repo!r}, weight_name="{DIFFUSERS_FILES[1]}",',
        "                            text_encoder=pipe.text_encoder_2, tokenizer=pipe.tokenizer_2)",
    ]
    if is_of_sd:
        load = [f'pipe.load_textual_inversion({repo!r}, weight_name="{DIFFUSERS_FILES[0]}")']
    lines = [
        "import torch",
        f"from diffusers import {pipeline}",
        "",
        f"pipe = {pipeline}.from_pretrained({base_model!r}, torch_dtype=torch.float16)",
        *load,
        f'pipe.to("cuda")({publication.instance_prompt!r}).images[0].save("image.png")',
    ]
    where = "" if publication.repo else ", in this folder"
    parts = [f"**diffusers**{where}:", _code_block("python", "\n".join(lines))]
    if publication.embedding.pooling == "end_of_text":
        parts.append(
            "The embedding was trained with OpenCLIP's pooled vector taken at the end of the text, and diffusers takes "
            f"it at the placeholder token: `pipe.text_encoder_2.text_model.eos_token_id = {END}` before the last line "
            "makes it do the same."
        )
    return parts


def _command(publication: Publication) -> str:
    pooling = publication.embedding.pooling
    flag = " --pooling argmax" if pooling == "argmax" else ""  # the default otherwise, also if it is unknown
    if pooling == NO_POOLING:  # the config's default weights are SDXL's
        flag = f" --weight {shlex.quote(publication.base_model or 'MODEL')}"
    return (
        "python demo/sampling_without_streamlit.py --textual_inversion_weight embedding \\\n"
        f"    --prompt {shlex.quote(publication.instance_prompt)}{flag}"
    )


def _code(text: str) -> str:
    """Return any text as inline code of Markdown, in one line."""
    text = " ".join(text.split())
    fence = "`" * (1 + _longest_backtick_run(text))
    return f"{fence}{text}{fence}" if len(fence) == 1 else f"{fence} {text} {fence}"


def _code_block(language: str, text: str) -> str:
    fence = "`" * max(3, 1 + _longest_backtick_run(text))
    return f"{fence}{language}\n{text}\n{fence}"


def _longest_backtick_run(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)
