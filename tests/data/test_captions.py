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


def load(folder: Path) -> tuple[tuple[str, ...], ...]:
    return captions.load_captions(folder, NAMES, "<toy>", lambda text: "<toy>" in text.split())


def test_text_files_and_metadata(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = [{"file_name": "1.png", "text": "a {} in the snow"}, {"file_name": "2.jpg", "text": "a <toy> on grass"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    (tmp_path / "2.txt").write_text("  a {} on a  table \r\n", encoding="utf-8-sig")
    with caplog.at_level(logging.INFO, "gm"):
        assert load(tmp_path) == (("a <toy> in the snow",), ("a <toy> on a table",), ())
    assert caplog.messages == [f"{tmp_path / 'metadata.jsonl'}: text files override the captions of 2.jpg"]


def test_each_line_of_a_text_file_is_a_caption(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "1.txt").write_text("a {} on a table\n\n  \r\na {} in the sun\nin snow\n")
    (tmp_path / "2.txt").write_text("one {}\n")
    with caplog.at_level(logging.INFO, "gm"):
        assert load(tmp_path) == (("a <toy> on a table", "a <toy> in the sun", "<toy>, in snow"), ("one <toy>",), ())
    assert f"1 images in {tmp_path} have several captions, a line each; every step shows one of them" in caplog.messages


def test_a_line_ends_at_a_line_feed_only(tmp_path: Path) -> None:
    """Not where `str.splitlines` ends one too: those characters are allowed inside of a JSON string."""
    for separator in "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e":
        text = json.dumps({"file_name": "1.png", "text": f"a {{}} here{separator}and there"}, ensure_ascii=False)
        if separator in "\u2028\u2029\x85":  # JSON wants the others escaped
            (tmp_path / "metadata.jsonl").write_text(text + "\n", encoding="utf-8")
            assert load(tmp_path)[0] == ("a <toy> here and there",)
        (tmp_path / "2.txt").write_text(f"a {{}} here{separator}and there\n", encoding="utf-8")
        assert load(tmp_path)[1] == ("a <toy> here and there",)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["null"], ()),
        (["NaN"], ()),  # as pandas writes what is missing
        (["[]"], ()),
        (['""'], ()),
        (['["a {} on grass", "a {} indoors"]'], ("a <toy> on grass", "a <toy> indoors")),
        (['"a {} on grass"', '"a {} indoors"'], ("a <toy> on grass", "a <toy> indoors")),
        ([r'"a {}\non grass"'], ("a <toy> on grass",)),
    ],
)
def test_texts_of_metadata(tmp_path: Path, texts: list[str], expected: tuple[str, ...]) -> None:
    lines = [f'{{"file_name": "1.png", "text": {text}}}\n' for text in texts]
    (tmp_path / "metadata.jsonl").write_text("".join(lines))
    assert load(tmp_path)[0] == expected


@pytest.mark.parametrize("value", ["1", "true", "1.5", '{"en": "a {}"}', '["a {}", null]'])
def test_a_text_of_another_type_is_named(tmp_path: Path, value: str) -> None:
    (tmp_path / "metadata.jsonl").write_text(f'{{"file_name": "1.png", "text": {value}}}')
    with pytest.raises(UserError) as caught:
        load(tmp_path)
    assert str(caught.value).endswith(
        f"metadata.jsonl, line 1: text is {value}; write a string, or a list of strings of which each step shows one"
    )


def test_a_file_name_of_another_type_is_named(tmp_path: Path) -> None:
    (tmp_path / "metadata.jsonl").write_text('{"file_name": 1, "text": "a {}"}')
    with pytest.raises(UserError, match=r"metadata.jsonl, line 1: file_name is 1; write it as a string"):
        load(tmp_path)


def test_endings_of_caption_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path / "1.png", noise(8, 8))
    save(tmp_path / "2.jpg", noise(8, 8))
    save(tmp_path / "3.png", noise(8, 8))
    files = {"1.TXT": "a {}", "2.caption": "two {}", "2.Txt": "{} twice", "3.Caption": "{} of kohya"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert load(tmp_path) == (("a <toy>",), ("<toy> twice",), ("<toy> of kohya",))
    image_folder.load_images(tmp_path, 8)
    assert caplog.messages == [f"ignored in {tmp_path}, not an image by its suffix: 2.caption"]


def test_a_caption_without_the_placeholder_token_begins_with_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "1.txt").write_text("on a chair")
    (tmp_path / "2.txt").write_text("two <toy>s")  # another string
    (tmp_path / "3.txt").write_text(" \n")
    with caplog.at_level(logging.INFO, "gm"):
        assert load(tmp_path) == (("<toy>, on a chair",), ("<toy>, two <toy>s",), ())
    assert "2 captions contain neither {} nor <toy>, which was put at their beginning" in caplog.text


def test_a_class_word_follows_the_placeholder_token_that_is_filled_in(tmp_path: Path) -> None:
    (tmp_path / "1.txt").write_text("a {} in the snow\na {} toy\na <toy> as it is")
    (tmp_path / "2.txt").write_text("on a chair")
    found = captions.load_captions(tmp_path, NAMES, "<toy>", lambda text: "<toy>" in text.split(), "toy")
    assert found == (("a <toy> toy in the snow", "a <toy> toy", "a <toy> as it is"), ("<toy> toy, on a chair",), ())


def test_captions_of_images_that_do_not_exist_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "9.png", "text": "a {}"}')
    assert load(tmp_path) == ((), (), ())
    assert "has captions of images that do not exist: 9.png" in caplog.text


@pytest.mark.parametrize(
    "line", ["no JSON", "[1]", '{"file_name": "1.png"}', '{"text": "a {}"}', '"text"', "[" * 10**5]
)
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
