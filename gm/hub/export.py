"""What is said of a word that is shared, and what is not: where things are on the machine that learned it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from gm.data import templates
from gm.embeddings import io as embedding_io
from gm.embeddings.embedding import Embedding, safe_filename
from gm.errors import UserError
from gm.sampling import image_files

_ON_THE_HUB = {"SD-XL-base-1.0": "stabilityai/stable-diffusion-xl-base-1.0"}
# Options that name places; a value with a slash is one whatever it is called. Prompts may hold slashes.
_PLACES = re.compile(r".*(_path|_file|_config|weight)|img|mask|resume|concepts")
_DEPTH = 8  # of tables in tables; training's own are four deep
_PROMPTS = re.compile(r".*prompt")


@dataclass(frozen=True)
class Shown:
    """An image to show with a word; `recipe` is empty where another program made it."""

    path: Path
    recipe: dict[str, Any]


@dataclass(frozen=True)
class Publication:
    """A word as it is shared.

    kind: what it stands for, "object", "style" or "face"; prompt: one that shows it; base_model: the name that the Hub
    knows the model by, "" for none; licence: as the Hub calls it, "" if none is given; repo: where on the Hub, or ""
    """

    concept: Embedding
    kind: str
    prompt: str
    base_model: str
    licence: str
    repo: str
    images: Sequence[Shown]

    @property
    def name(self) -> str:
        """What its own file is called, by which some programs call the word."""
        return safe_filename(self.concept.placeholder_token) or "learned"


def prepare(
    source: str | Path,
    images: Sequence[str | Path] = (),
    *,
    word: str | None = None,
    kind: str | None = None,
    prompt: str | None = None,
    base_model: str | None = None,
    licence: str = "",
    repo: str = "",
) -> Publication:
    """Read the embedding file `source` and its `images`; what is not given is what the file says it was learned with.

    Raises UserError for what `files.load` refuses, for images that are none, and a prompt without the word.
    """
    concept = embedding_io.load(source)
    concept = dataclasses.replace(
        concept, placeholder_token=word or concept.placeholder_token, metadata=public(concept.metadata)
    )
    kind = kind or _kind(concept.metadata)
    prompt = " ".join((prompt or templates.fill(templates.TEMPLATES[kind][0], concept.placeholder_token)).split())
    if concept.placeholder_token.lower() not in prompt.lower():
        raise UserError(f"--instance_prompt {prompt!r} does not hold the word {concept.placeholder_token}")
    if base_model is None:
        base_model = _ON_THE_HUB.get(str(concept.metadata.get("version")), "")
    return Publication(concept, kind, prompt, base_model, licence, repo, [_shown(Path(path)) for path in images])


def public(noted: Mapping[str, Any], depth: int = _DEPTH) -> dict[str, Any]:
    """Return a table of notes or options, and the tables in it, without what names a file or a folder.

    What lies more than `depth` tables and lists deep is left out, too.
    """
    kept = {}
    for name, value in noted.items():
        if isinstance(value, dict) and depth:
            kept[name] = public(value, depth - 1)
        elif not _is_place(name, value, depth):
            kept[name] = value
    return kept


def _kind(details: Mapping[str, Any]) -> str:
    """Return what a word was learned as; "object" where the details, which may be another program's, do not say."""
    found: Any = details
    for name in ("recipe", "concept", "learnable_property"):
        found = found.get(name) if isinstance(found, dict) else None
    return found if isinstance(found, str) and found in templates.TEMPLATES else "object"


def _is_place(name: str, value: Any, depth: int) -> bool:
    """Whether an option of this name and value says where something is, or goes too deep to tell."""
    if isinstance(value, list | dict):
        if not depth:
            return True
        if isinstance(value, dict):
            return public(value, depth - 1) != value
        return any(_is_place(name, part, depth - 1) for part in value)
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
        raise UserError(f"there is no image {path}; --images names images to show") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"--images {path} is no image, or damaged; leave it out") from error
    try:
        found: Any = image_files.read_parameters(path)
    except (UserError, ValueError, RecursionError):  # it has none, or one that another program wrote
        found = {}
    return Shown(path, public(found) if isinstance(found, dict) else {})
