"""Prompt templates: the shipped ones, and files that replace them."""

from __future__ import annotations

import pytest

from gm.data import templates
from gm.errors import UserError


@pytest.mark.parametrize("kind", ["object", "style", "face"])
def test_shipped_templates(kind):
    sentences = templates.load(kind, None)
    assert len(sentences) == len(set(sentences)) >= 15
    for sentence in sentences:
        assert sentence.count("{}") == 1
        assert sentence.count("{") == sentence.count("}") == 1
        assert sentence == sentence.strip()
        assert len(sentence.split()) <= 12


def test_first_template_is_the_plainest():
    assert templates.load("object", None)[0] == "a photo of {}"
    assert templates.load("style", None)[0] == "a picture in the style of {}"
    assert templates.load("face", None)[0] == "a portrait of {}"


def test_kinds_differ():
    kinds = [set(templates.load(kind, None)) for kind in templates.TEMPLATES]
    assert not kinds[0] & kinds[1]
    assert not kinds[1] & kinds[2]
    assert not kinds[0] & kinds[2]


def test_unknown_property():
    with pytest.raises(UserError) as caught:
        templates.load("objekt", None)
    assert str(caught.value) == "no templates for 'objekt'; there are object, style, face; did you mean 'object'?"


def test_fill():
    assert templates.fill("a {} and a {}, {literally} {0}", "<cat {}>") == "a <cat {}> and a <cat {}>, {literally} {0}"


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        ("a photo of {}", "a photo of <cat-toy> toy"),
        ("{} and a {}, {0}", "<cat-toy> toy and a <cat-toy> toy, {0}"),
        ("{}'s shadow", "<cat-toy> toy's shadow"),
        ("a {} toy, a {}  Toys on it", "a <cat-toy> toy, a <cat-toy>  Toys on it"),  # it is there already
        ("a <cat-toy> in a box", "a <cat-toy> in a box"),  # as it was written
        ("a {} (toy)", "a <cat-toy> toy (toy)"),
    ],
)
def test_class_word_follows_the_placeholder_token(template, prompt):
    assert templates.fill(template, "<cat-toy>", "toy") == prompt


def test_text_in_token_and_class_word_is_literal():
    assert templates.fill("a {}", r"<\1 {}>", "c++ (2)") == r"a <\1 {}> c++ (2)"
    assert templates.fill("a {} c++ (2)", r"<\1 {}>", "c++ (2)") == r"a <\1 {}> c++ (2)"
    assert templates.fill("a {}", "<x>", "") == templates.fill("a {}", "<x>", None) == "a <x>"


def written(tmp_path, content):
    path = tmp_path / "mine.txt"
    path.write_bytes(content)
    return str(path)


def test_file_replaces_the_shipped_ones(tmp_path):
    content = "\ufeff# mine\r\n\r\n  a {} in a box \r\nein {} für {dich} – \u2028 {}\n   \n  # {} no\nlast {}".encode()
    path = written(tmp_path, content)
    expected = ("a {} in a box", "ein {} für {dich} – \u2028 {}", "last {}")
    assert templates.load("object", path) == expected
    assert templates.load("style", path) == expected


def error(path):
    with pytest.raises(UserError) as caught:
        templates.load("object", path)
    return str(caught.value)


@pytest.mark.parametrize("line", ["a photo", "a {0} photo", "a { } photo", "a {placeholder}"])
def test_a_line_without_a_place_for_the_placeholder_token(tmp_path, line):
    path = written(tmp_path, f"# first\n\na {{}}\n {line}\nmore\n".encode())
    assert error(path) == f"{path}, line 4: {line!r} has no {{}}; write {{}} for the placeholder token"


@pytest.mark.parametrize("content", [b"", b"\n \n", b"# {}\n"])
def test_file_without_templates(tmp_path, content):
    path = written(tmp_path, content)
    hint = "write one a line, with {} for the placeholder token"
    assert error(path) == f"template file {path} has no template; {hint}"


def test_missing_file(tmp_path):
    path = str(tmp_path / "none.txt")
    assert error(path) == f"cannot read template file {path}: No such file or directory; check --template_file"


def test_folder_for_a_file(tmp_path):
    assert error(str(tmp_path)) == f"cannot read template file {tmp_path}: Is a directory; check --template_file"


@pytest.mark.parametrize("content", ["ein {} für dich".encode("latin-1"), "a {}".encode("utf-16")])
def test_other_encodings(tmp_path, content):
    path = written(tmp_path, content)
    assert error(path) == f"template file {path} is not UTF-8 text; save it with that encoding"
