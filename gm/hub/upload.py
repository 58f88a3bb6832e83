"""Upload of a published embedding to the Hugging Face Hub, through its client, an optional dependency.

The client reads HF_ENDPOINT, HF_TOKEN and the login that `hf auth login` stored.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from gm.errors import UserError, shorten


def check_repo(repo: str) -> None:
    """Raise UserError if the client is not installed, or `repo` is not of the form user/name."""
    client = _client()
    try:
        client.utils.validate_repo_id(repo)
    except client.errors.HFValidationError as error:
        raise UserError(f"--push_to_hub {repo} is not a repository name ({shorten(error)}); give user/name") from error
    if repo.count("/") != 1:
        raise UserError(f"--push_to_hub {repo} is not a repository name; give user/name")


def push_folder(folder: str | Path, names: list[str], repo: str, private: bool) -> str:
    """Upload the files `names` of `folder` to `repo`, creating it if it does not exist, and return its address.

    Raises UserError with the reason if the Hub refuses or does not answer; the folder stays.
    """
    client = _client()
    try:
        address = client.create_repo(repo, private=private, exist_ok=True)
        client.upload_folder(
            repo_id=repo, folder_path=folder, allow_patterns=names, commit_message="Add textual inversion embedding"
        )
    except Exception as error:  # of the client, its HTTP library, or its validation of the card
        raise UserError(
            f"the Hub did not accept {repo}: {shorten(error, 300)}; check the network and the login (hf auth login, or "
            f"HF_TOKEN) and push again with --overwrite; {folder} is complete"
        ) from error
    return str(address)


def logged_in() -> bool:
    """Return whether there is a token for the Hub; only the Hub can tell whether it is valid."""
    return bool(_client().get_token())


def user_name(folder: str | Path) -> str:
    """Return the name of the user who is logged in; UserError, naming the complete `folder`, if nobody is."""
    client = _client()
    try:
        return str(client.whoami()["name"])
    except Exception as error:  # of the client or its HTTP library
        raise UserError(
            f"the Hub does not say who is logged in ({shorten(error, 300)}); hf auth login, then tools/push_to_hub.py "
            f"--push_to_hub user/name; {folder} is complete"
        ) from error


def _client() -> ModuleType:
    try:
        import huggingface_hub
        import huggingface_hub.errors
        import huggingface_hub.utils
    except ImportError as error:
        raise UserError("--push_to_hub needs the Hub's client: pip install huggingface_hub") from error
    return huggingface_hub
