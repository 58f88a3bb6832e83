"""Adjustments in prompts: what is one, what is text, and what is refused."""

from __future__ import annotations

import pytest

from gm.errors import UserError
from gm.text import adjusted_references
from gm.text.adjusted_references import AdjustedReference
from gm.text.prompt_parser import parse
from gm.text.tokenizer import Tokenizer


@pytest.fixture
def tokenizer() -> Tokenizer:
    made = Tokenizer()
    made.add_placeholder("<toy>", 2, "My Toy")
    made.add_placeholder("hat-x", 1)
    return made


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a <toy>{0.5,0.2} here", ("<toy>", 0.5, 0.2, "")),
        ("a <TOY>{0.5,.2}", ("<toy>", 0.5, 0.2, "")),
        ("a <toy> { 1 , 0, golden  retriever }", ("<toy>", 1.0, 0.0, "golden retriever")),
        ("(hat-x{0.5,0.2,hat}:1.3)", ("hat-x", 0.5, 0.2, "hat")),
        ("embedding:toy{0.5,0.2}", ("<toy>", 0.5, 0.2, "")),
        ("<embed:My Toy>{0.5,0.2}", ("<toy>", 0.5, 0.2, "")),
    ],
)
def test_braces_after_a_placeholder_token_are_an_adjustment(
    tokenizer: Tokenizer, prompt: str, expected: tuple[str, float, float, str]
) -> None:
    assert adjusted_references.find(prompt, tokenizer) == [AdjustedReference(*expected)]


@pytest.mark.parametrize(
    "prompt", ["a <toy>, {0.5,0.2}", "a <toy>{red}", "a toy{0.5,0.2}", "a <toy>{}", r"a <toy>\{0.5,0.2}"]
)
def test_other_braces_are_text(tokenizer: Tokenizer, prompt: str) -> None:
    assert adjusted_references.find(prompt, tokenizer) == []
    (variant,) = parse(prompt, tokenizer, 1).variants
    assert variant[0].ids == tuple(tokenizer.encode(prompt))


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("<toy>{0.5}", "<toy>{0.5} in the prompt is not two numbers; write <toy>{0.5,0.2}, or <toy>{0.5,0.2,class wor"),
        ("<toy>{0.5,dog}", "is not two numbers"),
        ("<toy>{1.5,0.2}", "has alpha 1.5 and rho 0.2; both must be from 0 to 1"),
        ("<toy>{0.5,-0.2}", "has alpha 0.5 and rho -0.2"),
        ("<toy>_1{0.5,0.2}", "<toy>_1{0.5,0.2} in the prompt adjusts a single vector; write the braces after"),
    ],
)
def test_a_wrong_adjustment_is_refused(tokenizer: Tokenizer, prompt: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        adjusted_references.find(prompt, tokenizer)
    assert message in str(caught.value)


def test_an_adjusted_embedding_is_a_placeholder_token_of_its_own(tokenizer: Tokenizer) -> None:
    prompt = "a (<toy>{0.5,0.2}:1.2) and a <toy>{0.5,0.2,red car}, [<toy>:hat-x:1]"
    for reference in adjusted_references.find(prompt, tokenizer):
        tokenizer.add_placeholder(reference.name, 2)
    schedule = parse(prompt, tokenizer, 2)
    first = schedule.variants[0][0]
    assert [number for number in first.ids if number >= 49408] == [49411, 49412, 49413, 49414, 49408, 49409]
    assert first.weights[first.ids.index(49412)] == 1.2
    assert adjusted_references.adjusted_ids("<toy>", tokenizer) == {49408, 49409, *range(49411, 49415)}
    assert adjusted_references.adjusted_ids("hat-x", tokenizer) == {49410}


def test_braces_are_text_where_brackets_are(tokenizer: Tokenizer) -> None:
    (variant,) = parse("a <toy>{0.5,0.2}", tokenizer, 1, weights=False).variants
    assert variant[0].ids == tuple(tokenizer.encode("a <toy>{0.5,0.2}"))


def test_an_adjustment_that_is_not_registered_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match=r"<toy>\{0.5,0.2\} cannot be adjusted here; leave out the braces after <toy>"):
        parse("a <toy>{0.5,0.2}", tokenizer, 1)
