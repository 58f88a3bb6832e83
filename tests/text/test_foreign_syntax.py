"""Syntax that only other programs have is refused by name."""

from __future__ import annotations

import pytest

from gm.errors import UserError
from gm.text.prompt_parser import parse
from gm.text.tokenizer import Tokenizer


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a cat AND a dog", "AND in the prompt combines prompts in AUTOMATIC1111"),
        ("a cat :1.2 AND a dog :0.8", 'write "and" for the word'),
        ("[a AND b|c]", "AND in the prompt"),
        (
            "a cat <lora:detail:0.8>",
            "<lora:detail:0.8> in the prompt asks for a LoRA, which no prompt loads.*; remove it and give "
            "--lora_weight detail.safetensors:0.8$",
        ),
        ("<lora:sdxl/my detail:0.8:lbw=1>, cat", "remove it and give --lora_weight sdxl/my detail.safetensors$"),
        ("<LoRA:detail>", "asks for a LoRA, .* --lora_weight detail.safetensors$"),
        ("<lora:detail:-1>", "--lora_weight detail.safetensors:-1$"),
        (
            "(cat <lyco:detail:1>:1.2)",
            "<lyco:detail:1> in the prompt asks for a LyCORIS, .*--lora_weight detail.safetens",
        ),
        ("<hypernet:anime:0.5>", "<hypernet:anime:0.5> in the prompt asks for a hypernetwork"),
        ("a <segment:face>", "<segment:face> in the prompt asks for an extra network"),
        ('("a cat", "a dog").blend(0.7, 0.3)', "is compel's syntax"),
        ('("a cat", "a dog").and()', "is compel's syntax"),
        ("a (cat).swap(dog)", "is compel's syntax"),
        ("a {red|blue} cat", r"\{red\|blue\} in the prompt is a random choice in ComfyUI"),
    ],
)
def test_it_is_named(prompt: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(prompt, Tokenizer(), 3)


@pytest.mark.parametrize(
    "prompt",
    ["a cat and a dog", "SAND", "ANDROID", "And", "a < b: c > d", "<3: hearts", "cats.and(", "{cat}", "a|b", "{[a]|b}"],
)
def test_text_that_resembles_it_is_text(prompt: str) -> None:
    tokenizer = Tokenizer()
    tokenizer.add_placeholder("<toy>", 1)
    parse(prompt, tokenizer, 3)


def test_the_ways_out_give_the_text() -> None:
    tokenizer = Tokenizer()
    tokenizer.add_placeholder("<lora:toy>", 2)
    tokenizer.add_placeholder("ROCK-AND-ROLL", 2)
    for prompt, text in [
        (r"<lora\:detail>", "<lora:detail>"),
        ("<lora:toy> ROCK-AND-ROLL", "<lora:toy> rock-and-roll"),
    ]:
        (variant,) = parse(prompt, tokenizer, 3).variants
        assert [number for chunk in variant for number in chunk.ids] == tokenizer.encode(text)
    for prompt in ("a AND b", "<lora:detail>"):
        (variant,) = parse(prompt, tokenizer, 3, weights=False).variants
        assert [number for chunk in variant for number in chunk.ids] == tokenizer.encode(prompt)
