"""Diffusers folder of a pipeline with placeholder tokens: the base model's, with grown token tables and tokenizers.

The layout is that of diffusers' `DiffusionPipeline.save_pretrained` after `tokenizer.add_tokens` and
`text_encoder.resize_token_embeddings`, as for `--save_as_full_pipeline` of its scripts (huggingface/diffusers 58eb52c,
examples/textual_inversion). Other weights stay those of the base model's files: they are hard links where the file
system allows it.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gm.checkpoints import diffusers_format, diffusers_tokenizer, token_table
from gm.checkpoints.diffusers_configs import read_json
from gm.config.model import ModelConfig
from gm.errors import UserError
from gm.runtime import atomic_io

log = logging.getLogger("gm")

INDEX = "model_index.json"
_OPTION = "--save_as_full_pipeline"
_SCHEDULER = "scheduler"
_OPTIONAL = ("safety_checker", "feature_extractor", "image_encoder")  # of diffusers' pipelines for these models
_SMALL = (".json", ".txt")  # of the files that are no weights
_OF_SHARDS = re.compile(r".*\.index(\.\w+)?\.json")


@dataclass(frozen=True)
class FullPipeline:
    """A checked base model and the placeholder tokens to add.

    components: the folder of each component in the base model; missing: components that its index lists and that are
    not there; tokens: one for each vector; first_ids: id of the first token, by the name of the text encoder here
    """

    source: Path
    components: dict[str, Path]
    missing: list[str]
    tokens: list[str]
    first_ids: dict[str, int]


def token_names(placeholder_token: str, num_vectors: int) -> list[str]:
    """Return the tokens of the vectors of a placeholder token, as diffusers names them: `<t>`, `<t>_1`, …"""
    return [placeholder_token, *(f"{placeholder_token}_{number}" for number in range(1, num_vectors))]


def prepare(
    source: Path, config: ModelConfig, tokens: Sequence[str], networks: Mapping[str, str] | None = None
) -> FullPipeline:
    """Check that the base model in the folder `source` can be saved with `tokens`, without reading its weights.

    `networks` are folders of the UNet and the VAE that are used in place of its own. Raises UserError for a source that
    is not a whole diffusers folder, for a token that a tokenizer has already, and for a token table that does not fit.
    """
    index = _read_index(source)
    encoders = {name: diffusers_format.TEXT_ENCODERS[name] for name in config.text_encoders}
    tokenizers = {name: _tokenizer_of(folder) for name, folder in encoders.items()}
    names = [name for name, entry in index.items() if _is_component(name, entry)]
    folders = {name: source / name for name in names}
    folders |= {name: _network_folder(name, path) for name, path in (networks or {}).items()}
    missing = [name for name, folder in folders.items() if not _is_whole(folder)]
    required = {*diffusers_format.networks(config), *tokenizers.values(), _SCHEDULER}
    incomplete = sorted(required - {*folders} | {*missing} - {*_OPTIONAL})
    if incomplete:
        raise UserError(f"{_OPTION}: {source} has no complete {incomplete[0]}; download or copy the folder again")
    components = {name: folder for name, folder in folders.items() if name not in missing}
    first_ids = {}
    for name, encoder in encoders.items():
        first_ids[name] = _first_id(components[tokenizers[name]], tokens)
        token_table.check(components[encoder], first_ids[name])
    return FullPipeline(source, components, missing, list(tokens), first_ids)


def write(pipeline: FullPipeline, target: Path, vectors: Mapping[str, np.ndarray]) -> None:
    """Write the pipeline into the folder `target`, its index last.

    `vectors` has float32 [tokens, width] by the name of each text encoder. The text encoders are streamed, one tensor
    in memory at a time. Raises UserError for a full disk, a folder that is not writable, and symbolic links in
    `target`, which could lead into the base model.
    """
    try:
        _write(pipeline, target, vectors)
    except OSError as error:
        raise UserError(f"cannot write {error.filename2 or error.filename or target}: {error.strerror}") from error


def component_names(folder: Path) -> list[str]:
    """Return the files and folders of the pipeline in `folder`; none if there is no whole one."""
    if not (folder / INDEX).is_file():
        return []
    names = [name for name, entry in read_json(folder / INDEX).items() if _is_component(name, entry)]
    return [INDEX, *(name for name in names if (folder / name).exists())]


def _read_index(source: Path) -> dict[str, Any]:
    requirement = f"{_OPTION} needs the diffusers folder of the base model as --weight"
    if not source.is_dir():
        raise UserError(
            f"{requirement}, and {source} is a single file; diffusers' from_single_file(…).save_pretrained(<folder>) "
            "makes the folder of it"
        )
    index = read_json(source / INDEX)
    if not index:
        raise UserError(f"{requirement}, and {source} has no {INDEX}; download or copy the whole folder")
    return index


def _is_component(name: str, entry: object) -> bool:
    """Return whether an entry of the index is a component with files; the others are options of the pipeline."""
    is_named = isinstance(entry, list) and len(entry) == 2 and entry[1] is not None
    return is_named and re.fullmatch(r"[A-Za-z]\w*", name) is not None


def _network_folder(name: str, path: str) -> Path:
    folder = Path(path) / name if (Path(path) / name).is_dir() else Path(path)
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{_OPTION} needs the diffusers folder of a network, with its config.json, and --{name} {path} is another "
            f"file; leave one of the options out"
        )
    return folder


def _is_whole(folder: Path) -> bool:
    """Return whether a component has its files; a network is not fetched with its config alone."""
    if not folder.is_dir():
        return False
    return not (folder / "config.json").is_file() or diffusers_format.find_weights(folder) is not None


def _tokenizer_of(text_encoder: str) -> str:
    return text_encoder.replace("text_encoder", "tokenizer")


def _first_id(tokenizer: Path, tokens: Sequence[str]) -> int:
    """Return the id of the first token to add; UserError if one of `tokens` is there, upper and lower case alike."""
    ids = diffusers_tokenizer.token_ids(tokenizer)
    known = {token.lower() for token in ids}
    for token in tokens:
        if token.lower() in known:
            raise UserError(f"{_OPTION}: {tokenizer} has the token {token} already; choose another --placeholder_token")
    return max(ids.values()) + 1


def _write(pipeline: FullPipeline, target: Path, vectors: Mapping[str, np.ndarray]) -> None:
    target.mkdir(parents=True, exist_ok=True)
    folders = {name: _create(target / name) for name in pipeline.components}
    index = _no_link(target / INDEX)
    index.unlink(missing_ok=True)  # until all components are there, the folder is none that can be loaded
    encoders = {diffusers_format.TEXT_ENCODERS[name]: name for name in pipeline.first_ids}
    tokenizers = {_tokenizer_of(folder): name for folder, name in encoders.items()}
    for name, source in pipeline.components.items():
        changed: dict[str, dict[str, Any]] = {}
        if name in tokenizers:
            first = pipeline.first_ids[tokenizers[name]]
            changed = diffusers_tokenizer.with_added_tokens(source, pipeline.tokens, first)
        elif name in encoders:
            encoder = encoders[name]
            path = _no_link(folders[name] / "model.safetensors")
            size = token_table.write_grown(source, path, pipeline.first_ids[encoder], vectors[encoder])
            changed = {"config.json": read_json(source / "config.json") | {"vocab_size": size}}
        elif weights := diffusers_format.find_weights(source):
            _link_weights(weights, folders[name])
        _copy_small_files(source, folders[name], changed)
    _write_json(index, read_json(pipeline.source / INDEX) | _without(pipeline.missing))


def _without(missing: Sequence[str]) -> dict[str, Any]:
    """Return the entries of the index for components that are not there."""
    if missing:
        log.info("the folder of the base model has no %s; the pipeline is saved without", ", ".join(missing))
    entries: dict[str, Any] = {name: [None, None] for name in missing}
    return entries | ({"requires_safety_checker": False} if "safety_checker" in missing else {})


def _link_weights(weights: Path, folder: Path) -> None:
    """Link the weights into `folder` without the variant in their name, as `save_pretrained` writes them."""
    stem = next(stem for stem in diffusers_format.STEMS if weights.name.startswith(stem))
    suffix = ".bin" if ".bin" in weights.name else ".safetensors"
    if weights.suffix != ".json":
        atomic_io.link_or_copy(weights, _no_link(folder / f"{stem}{suffix}"))
        return
    for shard in diffusers_format.shards(weights):
        atomic_io.link_or_copy(shard, _no_link(folder / shard.name))
    _write_json(_no_link(folder / f"{stem}{suffix}.index.json"), read_json(weights))


def _copy_small_files(source: Path, folder: Path, changed: Mapping[str, dict[str, Any]]) -> None:
    """Write configs and vocabularies, those in `changed` with the contents there."""
    for path in sorted(source.iterdir()):
        is_small = path.suffix in _SMALL and path.is_file() and not _OF_SHARDS.fullmatch(path.name)
        if is_small and path.name not in changed:
            with atomic_io.atomic_write(_no_link(folder / path.name)) as temporary:
                temporary.write_bytes(path.read_bytes())
    for name, content in changed.items():
        _write_json(_no_link(folder / name), content)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    # Python's fast encoder does not indent: a whole vocabulary takes it 0.1 s, and seconds with indentation.
    text = json.dumps(content, indent=None if path.name == diffusers_tokenizer.FAST else 2, ensure_ascii=False)
    with atomic_io.atomic_write(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def _create(folder: Path) -> Path:
    _no_link(folder).mkdir(exist_ok=True)
    return folder


def _no_link(path: Path) -> Path:
    if path.is_symlink():
        raise UserError(f"{path} is a symbolic link, which is not written through; remove it, or choose another folder")
    return path
