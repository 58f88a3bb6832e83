"""A checkpoint of any kind as tensors under MindSpore's names, with its statements about its model checked."""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path

from gm.checkpoints import (
    accepted_values,
    containers,
    detect,
    diffusers_configs,
    diffusers_format,
    single_file_statements,
    statements,
    variants,
)
from gm.checkpoints.containers import TensorFile
from gm.checkpoints.key_mapping import ParameterShapes
from gm.checkpoints.statements import Statement
from gm.config.model import ModelConfig

log = logging.getLogger("gm")

_NETWORK_OF = {"scheduler": "unet"}  # the noise on which the UNet was trained


def read(path: Path, shapes: ParameterShapes, config: ModelConfig, without: Collection[str] = ()) -> TensorFile:
    """Return the tensors of a file or diffusers folder, with MindSpore's names for those in `shapes`.

    The metadata are those that a file converted from it carries. What is left out is logged in one line. Of the
    networks `without` ("unet", "vae"), which come from other files, what the checkpoint says is neither compared with
    the model nor in the metadata. Raises UserError as `containers.read_weights`, `diffusers_format.read` and
    `diffusers_configs.read` do, and as `statements.check` does for another kind of model.
    """
    file = _read(path, config, without)
    entries = _without(_read_statements(path, file, config), without)
    statements.check(entries, accepted_values.accepted_values(config), path)
    tensors, left_out = variants.to_published_layout(file.tensors, shapes)
    if left_out:
        log.info("%s: not used: %s", path, "; ".join(left_out))
    networks = {key: _network(single_file_statements.METADATA_NAMES.get(key, key)) for key in file.metadata}
    metadata = {key: value for key, value in file.metadata.items() if networks[key] not in without}
    carried = statements.carried_metadata(entries, metadata)
    return TensorFile(tensors, statements.configured_metadata(config) | carried)


def check_network(network: str, path: Path, file: TensorFile, config: ModelConfig) -> None:
    """Raise UserError if `path` says that its `network` ("unet" or "vae") is of another kind of model.

    `path` is a file with the contents `file`, or the diffusers folder of the network or of a model.
    """
    if path.is_dir() and not (path / network).is_dir():
        entries = diffusers_configs.read_network(path, network)
    elif path.is_dir():
        entries = diffusers_configs.read(path, [network])
    else:
        entries = single_file_statements.read(path, file.tensors, file.metadata, config)
        if path.name.startswith(diffusers_format.STEMS) and (path.parent / "config.json").is_file():
            entries = [*entries, *diffusers_configs.read_network(path.parent, network)]  # a file of a diffusers folder
    entries = [statement for statement in entries if _network(statement.name) in (network, "modelspec")]
    statements.check(entries, accepted_values.accepted_values(config), path)


def _without(entries: list[Statement], without: Collection[str]) -> list[Statement]:
    return [statement for statement in entries if _network(statement.name) not in without]


def _network(name: str) -> str:
    """Return the network of which the statement `name` is made."""
    network = name.partition(".")[0]
    return _NETWORK_OF.get(network, network)


def _read(path: Path, config: ModelConfig, without: Collection[str]) -> TensorFile:
    if path.is_dir():
        return TensorFile(diffusers_format.read(path, config, without), {})
    file = containers.read_weights(path)
    detect.check_family(detect.detect_family({key: tensor.shape for key, tensor in file.tensors.items()}), config, path)
    return file


def _read_statements(path: Path, file: TensorFile, config: ModelConfig) -> list[Statement]:
    """Return the statements of the checkpoint at `path`, with the contents `file`, about its model."""
    if path.is_dir():
        return diffusers_configs.read(path, diffusers_format.networks(config))
    return single_file_statements.read(path, file.tensors, file.metadata, config)
