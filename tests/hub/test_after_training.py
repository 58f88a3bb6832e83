"""`--push_to_hub` of training."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from gm import config as configuration
from gm.config import Config
from gm.errors import UserError
from gm.hub import after_training, upload


@pytest.fixture
def pushed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    calls: list[tuple[Any, ...]] = []

    def push_folder(folder: Path, names: list[str], repo: str, private: bool) -> str:
        calls.append((folder, sorted(names), repo, private))
        return f"https://hub/{repo}"

    monkeypatch.setattr(upload, "push_folder", push_folder)
    monkeypatch.setattr(upload, "user_name", lambda folder: "ann")
    return calls


def config(folder: Path, **training: Any) -> Config:
    return configuration.load(None, {"training": {"save_path": str(folder), "push_to_hub": True, **training}})


def test_the_last_embedding_is_published_under_the_name_of_the_folder(
    embedding_path: Path, generated_image: Path, tmp_path: Path, pushed: list[tuple[Any, ...]]
) -> None:
    (tmp_path / "previews").mkdir()
    shutil.copy(generated_image, tmp_path / "previews" / "step_7.png")
    assert after_training.push(config(tmp_path), [embedding_path]) == f"https://hub/ann/{tmp_path.name}"
    ((folder, names, repo, private),) = pushed
    assert (folder, repo, private) == (tmp_path / "published", f"ann/{tmp_path.name}", False)
    assert names == sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    assert {"README.md", "learned_embeds.safetensors", "images/0.png"} <= set(names)


def test_a_repository_may_be_named(embedding_path: Path, tmp_path: Path, pushed: list[tuple[Any, ...]]) -> None:
    after_training.push(config(tmp_path, hub_model_id="bob/cat"), [embedding_path])
    assert pushed[0][2] == "bob/cat"
    with pytest.raises(UserError, match="--push_to_hub publishes one embedding a repository, and there are 2"):
        after_training.push(config(tmp_path), [embedding_path, embedding_path])


def test_what_is_missing_is_said_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(upload, "logged_in", lambda: False)
    after_training.check(config(tmp_path / "cat"))
    assert "there is no login to the Hugging Face Hub; hf auth login or HF_TOKEN gives one" in caplog.messages[0]
    caplog.clear()
    monkeypatch.setattr(upload, "logged_in", lambda: True)
    after_training.check(config(tmp_path / "cat"))
    assert caplog.messages == []
    with pytest.raises(UserError, match="is not a repository name"):
        after_training.check(config(tmp_path, hub_model_id="a/b/c"))
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="--push_to_hub needs the Hub's client"):
        after_training.check(config(tmp_path))


def test_a_missing_login_leaves_the_folder(
    embedding_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    def whoami() -> None:
        raise OSError("no token")

    monkeypatch.setattr(huggingface_hub, "whoami", whoami)
    with pytest.raises(UserError, match=r"the Hub does not say who is logged in \(no token\).*published is complete"):
        after_training.push(config(tmp_path), [embedding_path])
    assert (tmp_path / "published" / "README.md").is_file()
