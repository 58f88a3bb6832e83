"""What is said of a word that is shared, and what is not: where things are on the machine that learned it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from gm.concepts import files as concept_files
from gm.concepts.concept import Concept, plain
from gm.data import templates
from gm.errors import UserError
from gm.generation import files

_ON_THE_HUB = {"SD-XL-base-1.0": "stabilityai/stable-diffusion-xl-base-1.0"}
# Options that name places; a value with a slash is one whatever it is called. Prompts may hold slashes.
_PLACES = re.compile(r".*(_path|_file|_config|weight)|img|mask|resume|concepts")
_PROMPTS = re.compile(r".*prompt")


@dataclass(frozen=True)
class Shown:
    """A picture to show with a word; `recipe` is empty where another program made it."""

    path: Path
    recipe: dict[str, Any]


@dataclass(frozen=True)
class Publication:
    """A word as it is shared.

    kind: what it stands for, "object", "style" or "face"; prompt: one that shows it; base_model: the name that the Hub
    knows the model by, "" for none; licence: as the Hub calls it, "" if none is given; repo: where on the Hub, or ""
    """

    concept: Concept
    kind: str
    prompt: str
    base_model: str
    licence: str
    repo: str
    pictures: Sequence[Shown]

    @property
    def name(self) -> str:
        """What its own file is called, by which some programs call the word."""
        return plain(self.concept.placeholder) or "learned"


def prepare(
    source: str | Path,
    pictures: Sequence[str | Path] = (),
    *,
    word: str | None = None,
    kind: str | None = None,
    prompt: str | None = None,
    base_model: str | None = None,
    licence: str = "",
    repo: str = "",
) -> Publication:
    """Read the learned file `source` and its `pictures`; what is not given is what the file says it was learned with.

    Raises UserError for what `files.load` refuses, for pictures that are none, and a prompt without the word.
    """
    concept = concept_files.load(source)
    concept = dataclasses.replace(concept, placeholder=word or concept.placeholder, details=public(concept.details))
    learned = concept.details.get("recipe", {})
    own = learned.get("concept", {}) if isinstance(learned, dict) else {}
    kind = kind or (own.get("learnable_property") if isinstance(own, dict) else None)
    kind = kind if kind in templates.TEMPLATES else "object"
    prompt = prompt or templates.fill(templates.TEMPLATES[kind][0], concept.placeholder)
    if concept.placeholder.lower() not in prompt.lower():
        raise UserError(f"--instance_prompt {prompt!r} does not hold the word {concept.placeholder}")
    if base_model is None:
        base_model = _ON_THE_HUB.get(str(concept.details.get("version")), "")
    return Publication(concept, kind, prompt, base_model, licence, repo, [_shown(Path(path)) for path in pictures])


def public(noted: Mapping[str, Any]) -> dict[str, Any]:
    """Return a table of notes or options, and the tables in it, without what names a file or a folder."""
    kept = {}
    for name, value in noted.items():
        if isinstance(value, dict):
            kept[name] = public(value)
        elif not _is_place(name, value):
            kept[name] = value
    return kept


def _is_place(name: str, value: Any) -> bool:
    if isinstance(value, list):
        return any(_is_place(name, part) for part in value)
    if isinstance(value, dict):
        return public(value) != value
    if not isinstance(value, str):
        return False
    if _PROMPTS.fullmatch(name):
        return value.endswith(".txt")  # a file of prompts
    return bool(_PLACES.fullmatch(name)) or "/" in value or "\\" in value


def _shown(path: Path) -> Shown:
    try:
        with Image.open(path) as image:
            image.load()
    except FileNotFoundError as error:
        raise UserError(f"there is no picture {path}; --pictures names pictures to show") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"--pictures {path} is no picture, or damaged; leave it out") from error
    try:
        return Shown(path, public(files.recipe(path)))
    except UserError:
        return Shown(path, {})
