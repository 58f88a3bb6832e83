"""Text of strangers on the pages: shown as it is, never as Markdown."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from demo.app import plain

PAGES = Path(__file__).resolve().parents[2] / "demo" / "app"
MARKDOWN = {"error", "warning", "info", "success", "caption", "toast", "markdown", "write", "title", "header"}
MARKDOWN |= {"subheader", "button", "download_button", "checkbox", "tabs", "pills", "link_button", "badge"}


@pytest.mark.parametrize(
    "text",
    [
        "![x](http://evil.example/a.png)",
        "<img src=http://evil.example/a.png>",
        "`code` *a* _b_ **c** ~~d~~ $e$ \\f &lt; [g](h) :red[i]",
        "# heading",
        "- item",
        "1. item",
        "a | b",
        "two\nlines",
    ],
)
def test_every_sign_of_markdown_is_escaped(text: str) -> None:
    shown = plain.escape(text)
    assert plain.unescape(shown) == text
    assert not re.search(r"(?<!\\)(?:\\\\)*[`*_\[\]<>$~#|!&:+-]", re.sub(r"\\.", "", shown))


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("see https://evil.example", r"https?://"),
        ("see HTTP://evil.example", r"(?i)https?://"),
        ("see www.evil.example", r"www\."),
        ("write me@evil.example", r"@\w"),
        (":smile: and :material/home:", r":[\w+-]+:|:material/\w+:"),
    ],
)
def test_addresses_and_icons_that_are_found_after_unescaping_are_broken(text: str, pattern: str) -> None:
    parsed = re.sub(r"\\(.)", r"\1", plain.escape(text))  # as a parser of Markdown leaves it
    assert re.search(pattern, text)
    assert not re.search(pattern, parsed)


def test_a_megabyte_is_cut() -> None:
    assert len(plain.escape("<" * 10**6)) < 10_000


def test_pages_give_no_other_text_to_markdown() -> None:
    """What the pages pass to Streamlit's Markdown is written in them, or escaped."""
    found = []
    for path in PAGES.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args
            if not is_call or node.func.attr not in MARKDOWN or path.name == "plain.py":
                continue
            if isinstance(node.func.value, ast.Name) and node.func.value.id in ("plain", "messages"):
                continue
            for text in ast.walk(node.args[0]):
                if isinstance(text, ast.Name | ast.Attribute) and not _is_escaped(node.args[0]):
                    found.append(f"{path.name}:{node.lineno}")
    allowed = {"train.py": 2, "options.py": 1}  # labels that are chosen from constants, and a count of files
    assert {name: sum(each.startswith(f"{name}:") for each in set(found)) for name in allowed} == allowed
    assert {each.partition(":")[0] for each in found} <= set(allowed)


def _is_escaped(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "escape"
