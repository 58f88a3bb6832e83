"""Prompt templates of training; `{}` is the placeholder token. Sample images use the first template of a kind."""

from __future__ import annotations

import re
from pathlib import Path

from gm.errors import UserError, did_you_mean

TEMPLATES: dict[str, tuple[str, ...]] = {
    "object": (
        "a photo of {}",
        "a snapshot of {}",
        "{} seen up close",
        "{} from a few steps away",
        "one {} and nothing else",
        "a sharp picture of {}",
        "a slightly blurred picture of {}",
        "{} in daylight",
        "{} under a lamp",
        "{} in soft shade",
        "{} on a plain background",
        "{} standing on something",
        "{} from the side",
        "{} from above",
        "{} in the middle of the picture",
        "my own {}, photographed at home",
        "a bright picture showing {}",
        "a dim picture showing {}",
        "somebody took this picture of {}",
        "this is what {} looks like",
    ),
    "style": (
        "a picture in the style of {}",
        "a scene drawn the way of {}",
        "{} style artwork",
        "a work in the manner of {}",
        "a landscape in the style of {}",
        "a still life in the style of {}",
        "a figure in the style of {}",
        "a small study in the style of {}",
        "a large work in the style of {}",
        "a quiet scene, {} style",
        "a busy scene, {} style",
        "a detail of a work in the style of {}",
        "a page from a sketchbook, {} style",
        "colours and lines as in {}",
        "something familiar, done in {} style",
        "a composition that follows {}",
        "a print in the style of {}",
        "an illustration made after {}",
        "the look of {} on paper",
        "this picture has the style of {}",
    ),
    "face": (
        "a portrait of {}",
        "a photo of the face of {}",
        "{} looking into the camera",
        "{} looking to one side",
        "{} with a smile",
        "{} with a serious look",
        "a close portrait of {}",
        "head and shoulders of {}",
        "{} in daylight, outdoors",
        "{} indoors by a window",
        "a portrait of {} in soft light",
        "a portrait of {} in hard light",
        "a passport picture of {}",
        "{} in front of a plain wall",
        "{} among other things in a room",
        "a casual picture of {}",
        "{} on an ordinary day",
        "the face of {}, in focus",
        "somebody photographed {}",
        "this is {}",
    ),
}


def load(learnable_property: str, template_file: str | None) -> tuple[str, ...]:
    """Return the templates of `learnable_property`, or those of `template_file` instead.

    The file is UTF-8 with one template on each line; blank lines and lines that begin with `#` are skipped. Raises
    UserError for an unknown property, a file that cannot be read or has no template, and a line without `{}`.
    """
    if template_file is not None:
        return read(Path(template_file))
    if learnable_property not in TEMPLATES:
        hint = did_you_mean(learnable_property, TEMPLATES)
        raise UserError(f"no templates for {learnable_property!r}; there are {', '.join(TEMPLATES)}{hint}")
    return TEMPLATES[learnable_property]


def fill(template: str, placeholder_token: str, class_word: str | None = None) -> str:
    """Return `template` with every `{}` replaced by `placeholder_token`; other braces stay as they are.

    With a `class_word` it follows the token, unless it stands there already, as in DreamBooth's prompts (Ruiz et al.,
    2023, section 3.2: "a [identifier] [class noun]").
    """
    if not class_word:
        return template.replace("{}", placeholder_token)
    place = re.compile(rf"\{{\}}(\s+{re.escape(class_word)})?", re.IGNORECASE)
    return place.sub(lambda match: placeholder_token + (match[1] or f" {class_word}"), template)


def read(path: Path, option: str = "--template_file") -> tuple[str, ...]:
    """Return the lines of a template file, which `option` names, as `load` does."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # Windows editors put a byte order mark in front
    except UnicodeDecodeError as error:
        raise UserError(f"template file {path} is not UTF-8 text; save it with that encoding") from error
    except OSError as error:
        raise UserError(f"cannot read template file {path}: {error.strerror}; check {option}") from error
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), start=1)]
    templates = [(number, line) for number, line in lines if line and not line.startswith("#")]
    for number, line in templates:
        if "{}" not in line:
            raise UserError(f"{path}, line {number}: {line!r} has no {{}}; write {{}} for the placeholder token")
    if not templates:
        raise UserError(f"template file {path} has no template; write one a line, with {{}} for the placeholder token")
    return tuple(line for _, line in templates)
