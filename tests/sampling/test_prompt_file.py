"""Prompt lines with options of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from gm.errors import UserError
from gm.sampling import prompt_file


def test_options_follow_the_prompt() -> None:
    assert prompt_file.parse("a cat --n blurry, dark --w 64 --h 128 --d 7 --s 9 --l 2.5") == {
        "prompt": "a cat",
        "negative_prompt": "blurry, dark",
        "width": 64,
        "height": 128,
        "seed": 7,
        "sample_step": 9,
        "guidance_scale": 2.5,
    }
    assert prompt_file.parse("a cat -- no, a dog-house --d 3")["prompt"] == "a cat -- no, a dog-house"
    assert prompt_file.parse("  a cat ") == {"prompt": "a cat"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "a cat --q 3",
            r"'a cat --q 3': --q is not an option of a prompt line; known are --n negative_prompt, --w width",
        ),
        ("a cat --d x", r"--d 'x' is not of type int"),
        ("a cat --w 5", r"'a cat --w 5': width is 5; it must be at least 8"),
        ("a cat --s", r"--s '' is not of type int"),
    ],
)
def test_mistakes_name_the_line(line: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        prompt_file.parse(line)


def test_a_text_file_holds_a_prompt_a_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("a cat\n\n  a grün dog --d 3 \n", encoding="utf-8-sig")
    assert prompt_file.read(str(path), "--prompt") == ["a cat", "a grün dog --d 3"]
    assert prompt_file.read("a cat", "--prompt") == ["a cat"]
    assert prompt_file.read("a " * 5000, "--prompt") == ["a " * 5000]


def test_a_line_ends_at_a_line_feed_only(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("a heart on a table\u2028 in\x85 the\x0c sun\r\nsecond\n", encoding="utf-8")
    assert prompt_file.read(str(path), "--prompt") == ["a heart on a table\u2028 in\x85 the\x0c sun", "second"]


def test_a_prompt_file_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "prompts.txt").write_text("a cat\na dog")
    assert prompt_file.read("~/prompts.txt", "--prompt") == ["a cat", "a dog"]
    assert prompt_file.read("~/a cat", "--prompt") == ["~/a cat"]
    assert prompt_file.read("~/prompts.txt", "--prompt", literal=True) == ["~/prompts.txt"]
    assert prompt_file.read("a\0cat", "--prompt") == ["a\0cat"]
    with pytest.raises(UserError, match=f"^{tmp_path}/gone.txt is not a file; --prompt takes a prompt, or a text file"):
        prompt_file.read("~/gone.txt", "--prompt")
