"""Properties of any prompt, random and hostile."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pytest

from gm.text.prompt_parser import parse
from gm.text.tokenizer import Tokenizer

SYNTAX = "()[]|:"
SOUP = [
    *SYNTAX,
    *SYNTAX,
    "\\",
    " ",
    "cat",
    "a dog",
    "1.5",
    ".5",
    "3",
    "-1",
    "BREAK",
    "<toy>",
    "<a:b|c]>",
    ", ",
    "é",
    "&lt;",
]


def random_text(random: np.random.Generator, pieces: list[str]) -> str:
    return "".join(random.choice(pieces, random.integers(1, 40)))


def escaped(text: str) -> str:
    return re.sub(r"[\\()\[\]|:]", r"\\\g<0>", text).replace("BREAK", "break")


@pytest.mark.parametrize("seed", range(60))
def test_a_prompt_without_syntax_has_the_ids_of_the_tokenizer(tokenizer: Tokenizer, seed: int) -> None:
    random = np.random.default_rng(seed)
    plain = [piece for piece in SOUP if piece not in (*SYNTAX, "BREAK", "\\")]
    plain += ["\\ ", "c:\\d", "a|b", "a) b", "]", ":)", " it's ", "don’t", "漢字", "&amp;#40;", "BREAKING", "<TOY>_1"]
    text = random_text(random, plain)
    (variant,) = parse(text, tokenizer, 3).variants
    assert [number for chunk in variant for number in chunk.ids] == tokenizer.encode(text)
    assert {weight for chunk in variant for weight in chunk.weights} <= {1.0}


@pytest.mark.parametrize("seed", range(60))
def test_an_escaped_prompt_is_plain_text(tokenizer: Tokenizer, seed: int) -> None:
    text = random_text(np.random.default_rng(seed), SOUP)
    (variant,) = parse(escaped(text), tokenizer, 3).variants
    assert [number for chunk in variant for number in chunk.ids] == tokenizer.encode(text)
    assert {weight for chunk in variant for weight in chunk.weights} <= {1.0}


def random_nest(random: np.random.Generator, weight: float, depth: int) -> list[tuple[str, str, float]]:
    """Return nested emphasis as (text before the word, word, its weight); the last entry has no word."""
    nest: list[tuple[str, str, float]] = []
    before = ""
    for _ in range(random.integers(1, 4)):
        kind = random.integers(0, 4) if depth else 0
        if kind == 0:
            nest.append((before + " ", str(random.choice(["cat", "dog", "<toy>", "<a:b|c]>"])), weight))
            before = ""
            continue
        number = round(float(random.uniform(-2, 2)), 3)
        factor, opening, closing = [(1.1, "(", ")"), (1 / 1.1, "[", "]"), (number, "(", f":{number})")][kind - 1]
        inner = random_nest(random, weight * factor, depth - 1)
        nest.append((before + opening + inner[0][0], *inner[0][1:]))
        nest += inner[1:-1]
        before = inner[-1][0] + closing
    return [*nest, (before, "", weight)]


@pytest.mark.parametrize("seed", range(60))
def test_nested_weights_multiply(tokenizer: Tokenizer, seed: int) -> None:
    nest = random_nest(np.random.default_rng(seed), 1.0, 5)
    prompt = "".join(before + word for before, word, _ in nest)
    (variant,) = parse(prompt, tokenizer, 1).variants
    expected = [(number, weight) for _, word, weight in nest for number in tokenizer.encode(word)]
    actual = [pair for chunk in variant for pair in zip(chunk.ids, chunk.weights, strict=True)]
    assert [number for number, _ in actual] == [number for number, _ in expected]
    assert [weight for _, weight in actual] == pytest.approx([weight for _, weight in expected], abs=1e-6)


@pytest.mark.parametrize("seed", range(60))
def test_any_prompt_gives_a_valid_schedule(tokenizer: Tokenizer, seed: int) -> None:
    random = np.random.default_rng(seed)
    prompt, steps = random_text(random, SOUP), int(random.integers(1, 12))
    schedule = parse(prompt, tokenizer, steps)
    assert len(schedule.by_step) == steps
    first = [schedule.by_step.index(number) for number in range(len(schedule.variants))]
    assert all(a < b for a, b in pairwise(first)), "in order of first use, and none unused"
    assert len(set(schedule.variants)) == len(schedule.variants)
    assert len({len(variant) for variant in schedule.variants}) == 1
    assert all(len(chunk.ids) == len(chunk.weights) <= 75 for variant in schedule.variants for chunk in variant)


@pytest.mark.parametrize(
    ("prompt", "variants", "words"),
    [
        ("[" * 10_000 + "a" + "]" * 10_000, 1, 1),
        ("[a|" * 10_000 + "b" + "]" * 10_000, 2, 1),
        ("[a:" * 10_000 + "b" + ":1]" * 10_000, 2, 1),
        ("[: (cat) " * 10_000 + "]" * 10_000, 1, 20_000),
        (")]" * 10_000, 1, 20_000),
        ("(cat:1.2)dog " * 8_000, 1, 16_000),
        ("cat BREAK " * 10_000, 1, 10_000),
        ("word, " * 17_000, 1, 34_000),
        ("[a:" + "1" * 30_000 + "x]", 1, 30_003),
    ],
    ids=["deep", "alternating", "editing", "mixed", "closing", "weights", "breaks", "text", "digits"],
)
def test_hostile_prompts_are_parsed_in_linear_time(
    tokenizer: Tokenizer, prompt: str, variants: int, words: int
) -> None:
    """Each takes at most a third of a second; recursion or quadratic time would not."""
    schedule = parse(prompt, tokenizer, 20)
    assert len(schedule.variants) == variants
    assert sum(len(chunk.ids) for chunk in schedule.variants[0]) == words
