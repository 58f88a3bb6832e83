"""Captions: sources, placeholder tokens in them, and errors."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from gm.data import captions, image_folder
from gm.errors import UserError
from tests.data.images import noise, save

NAMES = ("1.png", "2.jpg", "3.png")


def load(folder: Path) -> tuple[str | None, ...]:
    return captions.load_captions(folder, NAMES, "<toy>", lambda text: "<toy>" in text.split())


def test_text_files_and_metadata(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = [{"file_name": "1.png", "text": "a {} in the snow"}, {"file_name": "2.jpg", "text": "a <toy> on grass"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    (tmp_path / "2.txt").write_text("  a {} on a\n table \n", encoding="utf-8-sig")
    with caplog.at_level(logging.INFO, "gm"):
        assert load(tmp_path) == ("a <toy> in the snow", "a <toy> on a table", None)
    assert caplog.messages == []


def test_a_caption_without_the_placeholder_token_begins_with_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "1.txt").write_text("on a chair")
    (tmp_path / "2.txt").write_text("two <toy>s")  # another string
    (tmp_path / "3.txt").write_text(" \n")
    with caplog.at_level(logging.INFO, "gm"):
        assert load(tmp_path) == ("<toy>, on a chair", "<toy>, two <toy>s", None)
    assert "2 captions contain neither {} nor <toy>, which was put at their beginning" in caplog.text


def test_captions_of_images_that_do_not_exist_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "9.png", "text": "a {}"}')
    assert load(tmp_path) == (None, None, None)
    assert "has captions of images that do not exist: 9.png" in caplog.text


@pytest.mark.parametrize("line", ["no JSON", "[1]", '{"file_name": "1.png"}', '{"text": "a {}"}', '"text"'])
def test_damaged_metadata_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "1.png", "text": "a {}"}\n' + line)
    with pytest.raises(UserError, match=r"metadata.jsonl, line 2 is not of the form"):
        load(tmp_path)


def test_files_in_other_encodings_are_named(tmp_path: Path) -> None:
    (tmp_path / "1.txt").write_bytes("a grün {}".encode("latin-1"))
    with pytest.raises(UserError, match=r"1.txt is not UTF-8 text; save it with that encoding"):
        load(tmp_path)


def test_caption_files_are_not_reported_as_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path / "1.png", noise(8, 8))
    for name in ("1.txt", "metadata.jsonl", "notes.txt"):
        (tmp_path / name).write_text("")
    image_folder.load_images(tmp_path, 8)
    assert caplog.messages == [f"ignored in {tmp_path}, not an image by its suffix: notes.txt"]
