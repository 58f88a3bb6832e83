"""`--push_to_hub` of training: the last embedding as a repository of the Hub."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from gm.config import Config
from gm.errors import UserError
from gm.hub import export, layout, upload

log = logging.getLogger("gm")

FOLDER = "published"  # in the output folder
_PREVIEWS = "previews"


def check(config: Config) -> None:
    """Raise UserError if the Hub's client is missing, and warn without a login, both before training.

    A wrong or missing login costs no training: the folder to push is written all the same.
    """
    repo = _repo_name(config)
    upload.check_repo(repo if "/" in repo else f"user/{repo}")
    if not upload.logged_in():
        log.warning(
            "--push_to_hub: there is no login to the Hugging Face Hub; hf auth login or HF_TOKEN gives one. The folder "
            "to push will be %s",
            Path(config.training.save_path) / FOLDER,
        )


def push(config: Config, paths: Sequence[Path]) -> str:
    """Write the folder to publish of the first embedding in `paths` and upload it; return its address.

    Raises UserError as `export.prepare`, `layout.write` and `upload.push_folder` do, with the folder complete.
    """
    save_path = Path(config.training.save_path)
    if len(paths) > 1:
        raise UserError(
            f"--push_to_hub publishes one embedding a repository, and there are {len(paths)} in {save_path}: "
            "tools/push_to_hub.py publishes each"
        )
    step = paths[0].stem.removesuffix("_ti").rpartition("_")[2]
    image = save_path / _PREVIEWS / f"step_{step}.png"
    repo = _repo_name(config)
    publication = export.prepare(paths[0], [image] if image.is_file() else [], repo=repo)
    target = save_path / FOLDER
    layout.write(publication, target, overwrite=True)
    if "/" not in repo:
        repo = f"{upload.user_name(target)}/{repo}"
    return upload.push_folder(target, layout.file_names(publication), repo, private=False)


def _repo_name(config: Config) -> str:
    return config.training.hub_model_id or Path(config.training.save_path).resolve().name
