"""Prompts of an evaluation: plain ones, which show whether the concept is reproduced, and those that edit it.

The editing prompts for objects and live subjects are those of DreamBooth's data set, DreamBench (Ruiz et al., 2023,
https://arxiv.org/abs/2208.12242; `dataset/prompts_and_classes.txt` of https://github.com/google/dreambooth). It has
none for styles; those here name 25 contents. `{}` is the concept: the placeholder token with the class word behind it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gm.errors import UserError

RECONSTRUCTION, EDITABILITY = "reconstruction", "editability"
GROUPS = (RECONSTRUCTION, EDITABILITY)
_TEXT_MARK = "=>"  # in a file: a prompt, then the text that CLIP-T compares its images with

_PLACES = (
    "a {} in the jungle",
    "a {} in the snow",
    "a {} on the beach",
    "a {} on a cobblestone street",
    "a {} on top of pink fabric",
    "a {} on top of a wooden floor",
    "a {} with a city in the background",
    "a {} with a mountain in the background",
    "a {} with a blue house in the background",
    "a {} on top of a purple rug in a forest",
)
_OBJECT_PLACES = (
    "a {} with a wheat field in the background",
    "a {} with a tree and autumn leaves in the background",
    "a {} with the Eiffel Tower in the background",
    "a {} floating on top of water",
    "a {} floating in an ocean of milk",
    "a {} on top of green grass with sunflowers around it",
    "a {} on top of a mirror",
    "a {} on top of the sidewalk in a crowded street",
    "a {} on top of a dirt road",
    "a {} on top of a white rug",
)
_OUTFITS = (
    "a {} wearing a red hat",
    "a {} wearing a santa hat",
    "a {} wearing a rainbow scarf",
    "a {} wearing a black top hat and a monocle",
    "a {} in a chef outfit",
    "a {} in a firefighter outfit",
    "a {} in a police outfit",
    "a {} wearing pink glasses",
    "a {} wearing a yellow shirt",
    "a {} in a purple wizard outfit",
)
_PROPERTIES = ("a red {}", "a purple {}", "a shiny {}", "a wet {}", "a cube shaped {}")
_CONTENTS = (
    "a fox in a forest",
    "a cat on a windowsill",
    "a horse on a meadow",
    "two birds on a branch",
    "a whale under water",
    "a bowl of oranges",
    "a teapot and two cups",
    "a vase with sunflowers",
    "a loaf of bread on a table",
    "an old clock",
    "a bicycle in front of a wall",
    "a red car on a road",
    "a sailing boat on a lake",
    "a train on a bridge",
    "a lighthouse at night",
    "a village in the mountains",
    "a city at sunset",
    "a waterfall in a jungle",
    "a desert with cacti",
    "a street in the rain",
    "a woman with a hat",
    "a man reading a newspaper",
    "children playing with a ball",
    "a robot in a kitchen",
    "a castle on a hill",
)
_STYLE = " in the style of {}"
_PLAIN = ("a photo of a {}", "a close-up photo of a {}", "a bright photo of a {}", "a photo of one {}")
_PLAIN_STYLE = ("an image", "a painting", "a drawing", "a scene")


@dataclass(frozen=True)
class Template:
    """A prompt with `{}` for the concept, and the text of CLIP-T, in which `{}` is the class word, if any."""

    prompt: str
    text: str


def _same(templates: tuple[str, ...]) -> tuple[Template, ...]:
    return tuple(Template(each, each) for each in templates)


def _styled(contents: tuple[str, ...]) -> tuple[Template, ...]:
    return tuple(Template(content + _STYLE, content) for content in contents)


PROMPT_SETS: dict[str, dict[str, tuple[Template, ...]]] = {
    "object": {RECONSTRUCTION: _same(_PLAIN), EDITABILITY: _same(_PLACES + _OBJECT_PLACES + _PROPERTIES)},
    "live": {RECONSTRUCTION: _same(_PLAIN), EDITABILITY: _same(_PLACES + _OUTFITS + _PROPERTIES)},
    "style": {RECONSTRUCTION: _styled(_PLAIN_STYLE), EDITABILITY: _styled(_CONTENTS)},
}
SET_OF_PROPERTY = {"object": "object", "style": "style", "face": "live"}


@dataclass(frozen=True)
class EvaluationPrompt:
    """A prompt of a group, with the text that CLIP-T compares its images with."""

    group: str
    prompt: str
    text: str


def fill(templates: tuple[Template, ...], group: str, concept: str, class_word: str) -> list[EvaluationPrompt]:
    """Return the prompts with `concept` in them, and their texts with the class word, or nothing, in its place."""
    return [
        EvaluationPrompt(
            group, each.prompt.replace("{}", concept), " ".join(each.text.replace("{}", class_word).split())
        )
        for each in templates
    ]


def read_templates(option: str, file: str) -> tuple[Template, ...]:
    """Return the templates in a text file, one a line: `a {} on the moon`, or `a {} on the moon => a toy on the moon`.

    Blank lines and lines that begin with `#` are skipped. Raises UserError for a file that cannot be read, for a line
    without `{}` or without a text behind `=>`, for a repeated prompt, and for no templates.
    """
    path = Path(file)
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n")]
    except UnicodeDecodeError as error:
        raise UserError(f"{option} {path} is not UTF-8 text; save it with that encoding") from error
    except OSError as error:
        raise UserError(f"cannot read {option} {path}: {error.strerror}") from error
    templates: dict[str, Template] = {}
    for number, line in enumerate(lines, start=1):
        if not line or line.startswith("#"):
            continue
        prompt, mark, text = (part.strip() for part in line.partition(_TEXT_MARK))
        if "{}" not in prompt:
            raise UserError(f"{path}, line {number}: {prompt!r} has no {{}}; write {{}} for the concept")
        if mark and not text:
            raise UserError(f"{path}, line {number}: no text follows {_TEXT_MARK}; write it, or leave out the mark")
        if prompt in templates:
            raise UserError(f"{path}, line {number}: {prompt!r} is there twice; remove one")
        templates[prompt] = Template(prompt, text or prompt)
    if not templates:
        raise UserError(f"{option} {path} has no prompt; write one a line, with {{}} for the concept")
    return tuple(templates.values())
