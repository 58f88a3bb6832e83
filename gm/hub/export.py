"""Contents of a published embedding, without the paths of the machine that trained it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gm.data import templates
from gm.data.image_reader import read_image
from gm.embeddings import io as embedding_io
from gm.embeddings.class_word import class_word
from gm.embeddings.embedding import Embedding, safe_filename
from gm.errors import UserError
from gm.sampling import image_files

_HUB_MODELS = {"SD-XL-base-1.0": "stabilityai/stable-diffusion-xl-base-1.0"}
# Options that hold paths; a value with a slash is a path whatever its option. Prompts may hold slashes.
_PATH_OPTIONS = re.compile(r".*(_path|_file|_config|weight)|vae|unet|img|mask|resume|concepts")
_PROMPT_OPTIONS = re.compile(r".*prompt")
_MAX_DEPTH = 8  # of nested values; those of training are four deep


@dataclass(frozen=True, eq=False)
class ExampleImage:
    """Image to show with an embedding: uint8 `pixels` [H, W, 3], without the metadata of a camera or program.

    `parameters` are its generation parameters, empty for another program's.
    """

    pixels: np.ndarray
    parameters: dict[str, Any]


@dataclass(frozen=True)
class Publication:
    """Embedding as it is published.

    type_of_concept: "object", "style" or "face"; instance_prompt: a prompt that shows the concept; base_model: the
    Hub's name of the model, "" if unknown; license: the Hub's name of it, "" for none; repo: repository on the Hub, or
    ""
    """

    embedding: Embedding
    type_of_concept: str
    instance_prompt: str
    base_model: str
    license: str
    repo: str
    images: Sequence[ExampleImage]

    @property
    def name(self) -> str:
        """File name without suffix, by which some programs call the embedding."""
        return safe_filename(self.embedding.placeholder_token) or "embedding"


def prepare(
    source: str | Path,
    images: Sequence[str | Path] = (),
    *,
    placeholder_token: str | None = None,
    type_of_concept: str | None = None,
    instance_prompt: str | None = None,
    base_model: str | None = None,
    license: str = "",
    repo: str = "",
) -> Publication:
    """Read the embedding file `source` and the example `images`; arguments left out come from the file's metadata.

    Raises UserError as `io.load` does, for unreadable images, and for a prompt without the placeholder token.
    """
    embedding = embedding_io.load(source, family=None)
    token = placeholder_token or embedding.placeholder_token
    metadata = remove_private_paths(embedding.metadata)
    trained_word = str(metadata.get("class_word") or "")
    if word := class_word(embedding):  # which may stand among the options of several concepts, with their paths
        metadata["class_word"] = word
    embedding = dataclasses.replace(embedding, placeholder_token=token, metadata=metadata)
    type_of_concept = type_of_concept or _find_type_of_concept(metadata)
    first = templates.fill(templates.TEMPLATES[type_of_concept][0], token, trained_word)
    prompt = " ".join((instance_prompt or first).split())
    if token.lower() not in prompt.lower():
        raise UserError(f"--instance_prompt {prompt!r} does not contain the placeholder token {token}")
    if base_model is None:
        base_model = _HUB_MODELS.get(str(metadata.get("version")), "")
    examples = [_read_example(Path(path)) for path in images]
    return Publication(embedding, type_of_concept, prompt, base_model, license, repo, examples)


def remove_private_paths(metadata: Mapping[str, Any], depth: int = _MAX_DEPTH) -> dict[str, Any]:
    """Return metadata or options, nested ones too, without entries that name a file or folder.

    Values nested more than `depth` levels deep are left out as well.
    """
    public = {}
    for key, value in metadata.items():
        if isinstance(value, dict) and depth:
            public[key] = remove_private_paths(value, depth - 1)
        elif not _is_path(key, value, depth):
            public[key] = value
    return public


def _find_type_of_concept(metadata: Mapping[str, Any]) -> str:
    """Return the `learnable_property` of training; "object" if the metadata, maybe another program's, lacks it."""
    value: Any = metadata
    for key in ("recipe", "concept", "learnable_property"):
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, str) and value in templates.TEMPLATES else "object"


def _is_path(key: str, value: Any, depth: int) -> bool:
    """Return whether an option holds a path, or is nested too deep to tell."""
    if isinstance(value, list | dict):
        if not depth:
            return True
        if isinstance(value, dict):
            return remove_private_paths(value, depth - 1) != value
        return any(_is_path(key, item, depth - 1) for item in value)
    if not isinstance(value, str):
        return False
    if key.startswith("modelspec."):  # architectures and addresses hold slashes, too
        return value.startswith(("/", "~", ".")) or "\\" in value
    if _PROMPT_OPTIONS.fullmatch(key):
        return value.endswith(".txt")  # a prompt file
    return bool(_PATH_OPTIONS.fullmatch(key)) or "/" in value or "\\" in value


def _read_example(path: Path) -> ExampleImage:
    if not path.is_file():
        raise UserError(f"--images {path} is not a file; give images to show")
    pixels = np.asarray(read_image(path).rgb)
    try:
        parameters: Any = image_files.read_parameters(path)
    except (UserError, ValueError, RecursionError):  # none, or those of another program
        parameters = {}
    return ExampleImage(pixels, remove_private_paths(parameters) if isinstance(parameters, dict) else {})
