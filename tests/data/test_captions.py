"""Captions beside images: where they are read from, what they become, what is wrong with them."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from gm.data import captions, image_folder
from gm.errors import UserError
from tests.data.images import noise, save

NAMES = ("1.png", "2.jpg", "3.png")


def read(place: Path) -> tuple[str | None, ...]:
    return captions.read(place, NAMES, "<toy>", lambda text: "<toy>" in text.split())


def test_text_files_and_metadata(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = [{"file_name": "1.png", "text": "a {} in the snow"}, {"file_name": "2.jpg", "text": "a <toy> on grass"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    (tmp_path / "2.txt").write_text("  a {} on a\n table \n", encoding="utf-8-sig")
    with caplog.at_level(logging.INFO, "gm"):
        assert read(tmp_path) == ("a <toy> in the snow", "a <toy> on a table", None)
    assert caplog.messages == []


def test_a_caption_without_the_word_gets_it_in_front(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "1.txt").write_text("on a chair")
    (tmp_path / "2.txt").write_text("two <toy>s")  # another word
    (tmp_path / "3.txt").write_text(" \n")
    with caplog.at_level(logging.INFO, "gm"):
        assert read(tmp_path) == ("<toy>, on a chair", "<toy>, two <toy>s", None)
    assert "2 captions hold neither {} nor <toy>, which now stands in front of them" in caplog.text


def test_captions_of_images_that_are_not_there_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "9.png", "text": "a {}"}')
    assert read(tmp_path) == (None, None, None)
    assert "captions images that are not there: 9.png" in caplog.text


@pytest.mark.parametrize("line", ["no JSON", "[1]", '{"file_name": "1.png"}', '{"text": "a {}"}', '"text"'])
def test_damaged_metadata_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "1.png", "text": "a {}"}\n' + line)
    with pytest.raises(UserError, match=r"metadata.jsonl, line 2 is not of the form"):
        read(tmp_path)


def test_other_encodings_are_named(tmp_path: Path) -> None:
    (tmp_path / "1.txt").write_bytes("a grün {}".encode("latin-1"))
    with pytest.raises(UserError, match=r"1.txt is not UTF-8 text; save it with that encoding"):
        read(tmp_path)


def test_they_are_no_strangers_in_the_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path / "1.png", noise(8, 8))
    for name in ("1.txt", "metadata.jsonl", "notes.txt"):
        (tmp_path / name).write_text("")
    image_folder.read(tmp_path, 8)
    assert caplog.messages == [f"ignored in {tmp_path}, no image by its ending: notes.txt"]
