"""gm/errors.py: one-line messages."""

from __future__ import annotations

from gm.errors import UserError, did_you_mean, shorten


def test_a_message_is_one_line_with_details_below() -> None:
    assert str(UserError("bad name 'a\nb\x1b[2J'; rename it")) == r"bad name 'a\nb\x1b[2J'; rename it"
    assert str(UserError("it failed", "line 1\nline\t2")) == "it failed\nline 1\nline\\t2"


def test_a_close_name_is_suggested() -> None:
    assert did_you_mean("eulr", ["ddim", "euler"]) == "; did you mean 'euler'?"
    assert did_you_mean("x", ["ddim", "euler"]) == ""


def test_quoted_text_is_shortened_to_one_line() -> None:
    assert shorten(ValueError("a\n  b")) == "a b"
    assert shorten("x" * 300, 10) == "x" * 10
