"""Models of the Hugging Face Hub: found in its local cache, or fetched by its client where that is installed.

The cache's layout (https://huggingface.co/docs/hub/local-cache) is read without the client:
`models--user--name/refs/main` holds the commit, `snapshots/<commit>/` the files.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gm.errors import UserError, shorten

if TYPE_CHECKING:
    from gm.config import RunConfig

log = logging.getLogger("gm")

_REPO = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
_SUFFIXES = (".safetensors", ".bin", ".ckpt")  # of files with weights; those of other formats are not fetched
_FILE_SUFFIXES = (".ckpt", ".safetensors", ".pt", ".bin", ".pth")
_INDEX = "model_index.json"
_NETWORKS = ("unet", "vae", "text_encoder", "text_encoder_2")
_OTHER_WEIGHTS = re.compile(r"(openvino|flax)_|onnx/")
_DEFAULT_REVISION = "main"


def locate(run: RunConfig) -> str:
    """Return the path of `run.weight`, where that is the name of a model of the Hub; another weight as it is.

    The local cache comes before the Hub. Raises UserError for a model that is in neither, or cannot be fetched.
    """
    name, revision = run.weight, run.revision or _DEFAULT_REVISION
    if not is_name(name):
        for option, value in (("revision", run.revision), ("variant", run.variant)):
            if value is not None:
                log.info("--%s %s has no effect: %s is not a model of the Hub", option, value, name)
        return name
    cached = find_cached(name, revision)
    if cached is not None:
        log.info("%s: %s in the Hugging Face cache", name, cached)
        if run.variant is not None:
            log.info("--variant %s: of the files in the cache, the most precise are read", run.variant)
        return str(cached)
    return str(_fetch(name, revision, run.variant))


def is_name(weight: str) -> bool:
    """Return whether `weight` has the form user/name and is no path: not there, and not that of a missing file."""
    if not _REPO.fullmatch(weight) or weight.endswith(_FILE_SUFFIXES) or os.path.lexists(weight):
        return False
    return not Path(weight).parent.is_dir()


def cache_folder() -> Path:
    """Return the folder of the Hub's cache, as its client chooses it."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(variable):
            return Path(os.environ[variable]).expanduser()
    user_cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    home = os.environ.get("HF_HOME")
    return (Path(home).expanduser() if home else user_cache / "huggingface") / "hub"


def find_cached(name: str, revision: str = _DEFAULT_REVISION) -> Path | None:
    """Return the diffusers folder, or else the only single file, of a model in the cache; None if it is not whole."""
    snapshot = find_snapshot(name, revision)
    return _model_in(snapshot) if snapshot else None


def find_snapshot(name: str, revision: str = _DEFAULT_REVISION) -> Path | None:
    """Return the folder of a repository's files in the cache; None if it is not there."""
    folder = cache_folder() / f"models--{name.replace('/', '--')}"
    reference = folder / "refs" / revision
    try:
        commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else revision
    except (OSError, UnicodeDecodeError):
        return None
    snapshot = folder / "snapshots" / commit
    return snapshot if snapshot.is_dir() else None


def _model_in(snapshot: Path) -> Path | None:
    names = [path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()]
    networks = _networks(snapshot / _INDEX)
    if networks:
        return snapshot if all(_weights_of(network, names, None) for network in networks) else None
    single = [name for name in names if "/" not in name and name.endswith((".safetensors", ".ckpt"))]
    return snapshot / single[0] if len(single) == 1 else None


def _networks(index: Path) -> list[str]:
    """Return the networks that the index of a pipeline lists; none without an index."""
    try:
        listed = json.loads(index.read_text(encoding="utf-8"))
        return [network for network in _NETWORKS if network in listed and listed[network] != [None, None]]
    except (OSError, ValueError, TypeError, RecursionError):
        return []


def _weights_of(network: str, names: Iterable[str], variant: str | None) -> list[str]:
    """Return the files with the weights of a network: those of the variant, else of the usual names; one format."""
    candidates = [
        name
        for name in names
        if name.startswith(f"{network}/") and name.endswith(_SUFFIXES) and not _OTHER_WEIGHTS.search(name)
    ]
    for suffix in _SUFFIXES:
        of_format = [name for name in candidates if name.endswith(suffix)]
        chosen = [name for name in of_format if variant and f".{variant}" in name]
        usual = [name for name in of_format if re.fullmatch(r"[^.]+", Path(name).stem)]
        for files in (chosen, usual, of_format):
            if files:
                return files
    return []


def _fetch(name: str, revision: str, variant: str | None) -> Path:
    """Fetch the files that are needed of a model, through the Hub's client; return the folder or file."""
    advice = f"give a folder or a file, or fetch it elsewhere: hf download {name} --local-dir <folder>"
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(
            f"--weight {name} is neither a file or folder nor in the Hugging Face cache {cache_folder()}; pip install "
            f"huggingface_hub fetches it, or {advice}"
        ) from error
    log.info("fetching %s, revision %s, from the Hugging Face Hub", name, revision)
    try:
        listed = huggingface_hub.HfApi().list_repo_files(name, revision=revision)
        patterns = _patterns(listed, _listed_networks(huggingface_hub, name, revision, listed), variant)
        folder = Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=patterns))
    except Exception as error:  # of the client, its HTTP library or the disk
        raise UserError(f"--weight {name} cannot be fetched ({shorten(error, 300)}); {advice}") from error
    model = _model_in(folder)
    if model is None:
        raise UserError(f"--weight {name} on the Hub holds no diffusers folder and not one single file; {advice}")
    return model


def _listed_networks(client: Any, name: str, revision: str, listed: Collection[str]) -> list[str]:
    if _INDEX not in listed:
        return []
    return _networks(Path(client.hf_hub_download(name, _INDEX, revision=revision)))


def _patterns(listed: Collection[str], networks: list[str], variant: str | None) -> list[str]:
    """Return the files to fetch: configs and tokenizers, and the weights of each network in one format."""
    if not networks:
        return [name for name in listed if "/" not in name and name.endswith((".safetensors", ".ckpt", ".json"))]
    small = [name for name in listed if name.endswith((".json", ".txt")) and not name.startswith("safety_checker")]
    return [*small, *(name for network in networks for name in _weights_of(network, listed, variant))]
