"""Placeholder tokens that the names of files stand for."""

from __future__ import annotations

from pathlib import Path

import pytest

from gm.embeddings.embedding import file_name
from gm.embeddings.names import split_token, token_from_name
from gm.errors import UserError
from gm.text.tokenizer import Tokenizer


@pytest.mark.parametrize(
    ("name", "token"),
    [
        ("mytoy", "mytoy"),
        ("<cat-toy>", "<cat-toy>"),
        ("SD-XL-base-1.0_3000_ti", "SD-XL-base-1.0_3000_ti"),
        ("My Toy v2", "<My-Toy-v2>"),
        ("my\ttoy (1)", "<my-toy-1>"),
        ("<my toy>", "<my-toy>"),
        ("cat", "<cat>"),
        ("Cat", "<Cat>"),
        (" cat ", "<cat>"),
        ("!", "<concept>"),
        ("", "<concept>"),
        ("スタイル", "スタイル"),
        ("a" * 200, "a" * 200),
    ],
)
def test_a_name_becomes_a_token_that_prompts_can_have(name: str, token: str) -> None:
    assert token_from_name(name) == token
    tokenizer = Tokenizer()
    ids = tokenizer.add_placeholder(token, 2)
    assert tokenizer.encode(token) == list(ids)
    assert token_from_name(token) == token


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a/My Toy v2.safetensors", "My Toy v2"),
        ("a\\b\\toy.PT", "toy"),
        ("runs/SD-XL-base-1.0_3000_ti.ckpt", "SD-XL-base-1.0_3000_ti"),
        ("published/cat.v2", "cat.v2"),
        ("", ""),
    ],
)
def test_the_name_of_a_file_has_no_suffix(path: str, name: str) -> None:
    assert file_name(path) == name


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a.safetensors", ("a.safetensors", "")),
        ("a.safetensors=<toy>", ("a.safetensors", "<toy>")),
        ("a.safetensors=<a=b>", ("a.safetensors", "<a=b>")),
        ("x=1.safetensors", ("x=1.safetensors", "")),
        ("x=1.safetensors=<toy>", ("x=1.safetensors", "<toy>")),
        ("folder=toy", ("folder", "toy")),
        ("none.ckpt=<toy>", ("none.ckpt", "<toy>")),
        ("none=1.ckpt", ("none=1.ckpt", "")),
    ],
)
def test_a_token_after_a_file_is_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, expected: tuple[str, str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.safetensors", "x=1.safetensors"):
        Path(name).touch()
    Path("folder").mkdir()
    assert split_token(path) == (Path(expected[0]), expected[1])


def test_an_empty_choice_is_refused() -> None:
    with pytest.raises(UserError, match=r'a.ckpt= +chooses no placeholder token; write "a.ckpt=<token>"'):
        split_token("a.ckpt= ")


def test_the_home_folder_of_a_path_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert split_token("~/toy.pt") == (tmp_path / "toy.pt", "")
    assert split_token("~/toy.pt=<toy>") == (tmp_path / "toy.pt", "<toy>")
