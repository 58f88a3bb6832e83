"""Docs: the Chinese pages say what the English ones say, as far as a program can compare them."""

from __future__ import annotations

import re
from collections import Counter
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "docs/ascend.md")


def chinese(page: str) -> Path:
    """Return the Chinese version of an English page."""
    return ROOT / page.replace(".md", "_CN.md")


def split(file: Path) -> tuple[list[str], str]:
    """Return the code blocks of a page, without comments, and its text without them."""
    text = file.read_text()
    blocks = re.findall(r"^ *```\w+\n.*?^ *```$", text, re.MULTILINE | re.DOTALL)
    for block in blocks:
        text = text.replace(block, "")
    return [re.sub(r" +# .*", "", block) for block in blocks], text


def tables(text: str) -> list[list[str]]:
    """Return the rows of each table."""
    return [table.splitlines() for table in re.findall(r"(?:^ *\|.*\n)+", text, re.MULTILINE)]


def links(text: str) -> Counter[str]:
    """Return the targets of all links and images, in English, without anchors."""
    targets = re.findall(r"\]\(([^)]+)\)", text)
    return Counter(re.sub(r"#.*", "", target.replace("_CN.md", ".md")) for target in targets if target[0] != "#")


@pytest.mark.parametrize("page", PAGES)
def test_code_blocks_are_the_same(page: str) -> None:
    assert split(chinese(page))[0] == split(ROOT / page)[0]


@pytest.mark.parametrize("page", PAGES)
def test_headings_have_the_same_levels_in_the_same_order(page: str) -> None:
    levels = [re.findall(r"^#+(?= )", split(file)[1], re.MULTILINE) for file in (ROOT / page, chinese(page))]
    assert levels[0] == levels[1]


@pytest.mark.parametrize("page", PAGES)
def test_tables_have_the_same_rows_columns_and_numbers(page: str) -> None:
    english, translated = (tables(split(file)[1]) for file in (ROOT / page, chinese(page)))
    assert [len(table) for table in translated] == [len(table) for table in english]
    for row, same_row in zip(chain(*english), chain(*translated), strict=True):
        assert same_row.count("|") == row.count("|"), same_row
        assert Counter(re.findall(r"\d[\d.]*\d|\d", same_row)) == Counter(re.findall(r"\d[\d.]*\d|\d", row)), same_row


@pytest.mark.parametrize("page", PAGES)
def test_names_in_code_type_and_links_are_the_same(page: str) -> None:
    english, translated = (split(file)[1] for file in (ROOT / page, chinese(page)))
    assert set(re.findall(r"`([^`\n]+)`", translated)) == set(re.findall(r"`([^`\n]+)`", english))
    assert links(translated) == links(english)


@pytest.mark.parametrize("page", PAGES)
def test_each_version_begins_with_a_link_to_the_other(page: str) -> None:
    name = Path(page).name
    assert (ROOT / page).read_text().splitlines()[2] == f"English | [中文]({chinese(page).name})"
    assert chinese(page).read_text().splitlines()[2] == f"[English]({name}) | 中文"


@pytest.mark.parametrize("page", PAGES)
def test_the_chinese_page_is_in_chinese(page: str) -> None:
    """No paragraph, list item or table cell is left in English."""
    text = re.sub(r"`[^`\n]+`|\]\([^)]+\)", "", split(chinese(page))[1])
    english = re.findall(r"(?:[A-Za-z,']{2,} ){7,}", text)
    assert english == []


@pytest.mark.parametrize("page", PAGES)
def test_the_state_of_ascend_is_said_in_the_same_words(page: str) -> None:
    assert "ompiled for Ascend in every CI, not yet run on a card" in (ROOT / page).read_text()
    assert "每次 CI 都会针对昇腾编译，但尚未在昇腾卡上运行过" in chinese(page).read_text()
