"""Text of strangers on the pages: shown as it is, never as Markdown."""

from __future__ import annotations

import ast
import builtins
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
            if _holds_other_text(node.args[0]):
                found.append(path.name)
    # Labels that are chosen from constants, suffixes of files, and numbers.
    assert sorted(found) == ["options.py", "train_images.py", "train_run.py", "train_run.py", "train_run.py"]


def _holds_other_text(node: ast.AST) -> bool:
    """Whether an expression holds a variable that is neither escaped, nor formatted as a number, nor a constant."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "escape":
        return False
    if isinstance(node, ast.FormattedValue) and node.format_spec is not None:
        return False
    if isinstance(node, ast.Name):
        return not (node.id.isupper() or hasattr(builtins, node.id))
    return any(_holds_other_text(child) for child in ast.iter_child_nodes(node))
