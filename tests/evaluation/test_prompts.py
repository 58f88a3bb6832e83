"""Prompts of evaluations: the sets, and files in their place."""

from __future__ import annotations

from pathlib import Path

import pytest

from gm.errors import UserError
from gm.evaluation import prompts
from gm.evaluation.prompts import EDITABILITY, PROMPT_SETS, RECONSTRUCTION


@pytest.mark.parametrize("name", PROMPT_SETS)
def test_every_set_has_25_different_editing_prompts_and_plain_ones(name: str) -> None:
    editing, plain = PROMPT_SETS[name][EDITABILITY], PROMPT_SETS[name][RECONSTRUCTION]
    assert len({each.prompt for each in editing}) == 25
    assert len({each.prompt for each in plain}) == 4
    assert all(each.prompt.count("{}") == 1 for each in (*editing, *plain))


def test_sets_of_dreambench_share_places_and_properties() -> None:
    of_objects, of_live = ({each.prompt for each in PROMPT_SETS[name][EDITABILITY]} for name in ("object", "live"))
    assert len(of_objects & of_live) == 15
    assert {"a {} in the jungle", "a {} on top of a purple rug in a forest", "a cube shaped {}"} <= of_objects & of_live
    assert {"a {} floating in an ocean of milk", "a {} with the Eiffel Tower in the background"} <= of_objects - of_live
    assert {"a {} wearing a santa hat", "a {} in a purple wizard outfit"} <= of_live - of_objects


def test_text_has_the_class_word_in_place_of_the_concept() -> None:
    (prompt,) = prompts.fill(PROMPT_SETS["live"][EDITABILITY][:1], EDITABILITY, "<w> dog", "dog")
    assert (prompt.prompt, prompt.text) == ("a <w> dog in the jungle", "a dog in the jungle")
    (prompt,) = prompts.fill(PROMPT_SETS["live"][EDITABILITY][:1], EDITABILITY, "<w>", "")
    assert (prompt.prompt, prompt.text) == ("a <w> in the jungle", "a in the jungle")


def test_text_of_a_style_prompt_is_its_content() -> None:
    (prompt,) = prompts.fill(PROMPT_SETS["style"][EDITABILITY][:1], EDITABILITY, "<s>", "")
    assert (prompt.prompt, prompt.text) == ("a fox in a forest in the style of <s>", "a fox in a forest")


def test_file_of_prompts(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("\ufeff# places\n\na {} on the moon\na house as {} => a house\n", encoding="utf-8")
    templates = prompts.read_templates("--editability_prompts", str(path))
    assert [(each.prompt, each.text) for each in templates] == [
        ("a {} on the moon", "a {} on the moon"),
        ("a house as {}", "a house"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no prompt; write one a line"),
        ("a {}\na toy", "line 2: 'a toy' has no {}; write {} for the concept"),
        ("a {} =>", "line 1: no text follows =>"),
        ("a {}\na {} => b", "line 2: 'a {}' is there twice"),
    ],
)
def test_mistakes_in_a_file_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text(text)
    with pytest.raises(UserError, match=message.replace("{", r"\{").replace("}", r"\}")):
        prompts.read_templates("--editability_prompts", str(path))


def test_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read --editability_prompts .*nowhere\.txt"):
        prompts.read_templates("--editability_prompts", str(tmp_path / "nowhere.txt"))
    (tmp_path / "latin.txt").write_bytes(b"a {} caf\xe9")
    with pytest.raises(UserError, match="is not UTF-8 text"):
        prompts.read_templates("--editability_prompts", str(tmp_path / "latin.txt"))
