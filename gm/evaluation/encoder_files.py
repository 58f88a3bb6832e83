"""Files of an image encoder as transformers publishes it: a folder with config.json and the weights, or a Hub name."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gm.config import hub_models
from gm.errors import UserError, did_you_mean, shorten

log = logging.getLogger("gm")

CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first that is there is read


@dataclass(frozen=True)
class EncoderFiles:
    """Files of a published image encoder; `preprocessor` is empty without its file."""

    name: str
    weights: Path
    config: dict[str, Any]
    preprocessor: dict[str, Any]

    @property
    def config_path(self) -> Path:
        return self.weights.parent / CONFIG


def find(option: str, name: str) -> EncoderFiles:
    """Return the files of the encoder `name`: a folder, a file of weights in it, or user/name of a model of the Hub.

    The Hub's local cache comes before the Hub, which needs huggingface_hub. `option` names the flag in messages. Raises
    UserError for files that are missing or cannot be fetched, and for a config.json that is not one.
    """
    if hub_models.is_name(name):
        folder = hub_models.find_snapshot(name)
        if folder is None or not _has_files(folder):
            folder = _fetch(option, name)
        return _read(option, name, folder, _weights_in(folder))
    path = Path(name)
    if not path.exists():
        near = did_you_mean(path.name, (p.name for p in path.parent.iterdir()) if path.parent.is_dir() else ())
        raise UserError(
            f"{option} {name} does not exist; give a folder with {CONFIG} and {WEIGHTS[0]}, or a name on the Hugging "
            f"Face Hub{near}"
        )
    if path.is_file():
        return _read(option, name, path.parent, path)
    return _read(option, name, path, _weights_in(path))


def _read(option: str, name: str, folder: Path, weights: Path | None) -> EncoderFiles:
    if not (folder / CONFIG).is_file():
        raise UserError(f"{option} {name}: {folder} has no {CONFIG}; give the folder as it is on the Hub")
    if weights is None:
        index = sorted(path.name for path in folder.glob("*.index.json"))
        parts = f" but {index[0]}, of weights in parts, which are not read" if index else ""
        raise UserError(f"{option} {name}: {folder} has no {' or '.join(WEIGHTS)}{parts}; fetch it from the Hub")
    preprocessor = folder / PREPROCESSOR
    return EncoderFiles(
        name, weights, _read_json(folder / CONFIG), _read_json(preprocessor) if preprocessor.is_file() else {}
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path} ({shorten(error, 100)}); fetch it again") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object; fetch it again")
    return value


def _weights_in(folder: Path) -> Path | None:
    return next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)


def _has_files(folder: Path) -> bool:
    return (folder / CONFIG).is_file() and _weights_in(folder) is not None


def _fetch(option: str, name: str) -> Path:
    """Fetch the configs, and the weights in one format, through the Hub's client; return their folder."""
    advice = f"fetch it elsewhere, hf download {name} --local-dir <folder>, and give {option} <folder>"
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(
            f"{option} {name} is neither a folder nor in the Hugging Face cache {hub_models.cache_folder()}; pip "
            f"install huggingface_hub fetches it, or {advice}"
        ) from error
    log.info("fetching %s from the Hugging Face Hub", name)
    try:
        patterns = _patterns(huggingface_hub.HfApi().list_repo_files(name))
        folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # of the client, its HTTP library or the disk
        raise UserError(f"{option} {name} cannot be fetched ({shorten(error, 300)}); {advice}") from error
    return folder


def _patterns(listed: Sequence[str]) -> list[str]:
    weights = [name for name in WEIGHTS if name in listed][:1]
    return [name for name in (CONFIG, PREPROCESSOR) if name in listed] + weights
