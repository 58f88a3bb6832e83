"""Embeddings named as in ComfyUI, SwarmUI and InvokeAI."""

from __future__ import annotations

import pytest

from gm.errors import UserError
from gm.text.prompt_parser import PromptSchedule, parse
from gm.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    tokenizer = Tokenizer()
    tokenizer.add_placeholder("mytoy", 2, "mytoy")
    tokenizer.add_placeholder("<cat-toy>", 3, "SD-XL-base-1.0_3000_ti")
    tokenizer.add_placeholder("<My-Toy-v2>", 1, "My Toy v2")
    tokenizer.add_placeholder("toy_(style)", 1, "both")
    tokenizer.add_placeholder("badhands", 1, "both")
    return tokenizer


def schedule(prompt: str, tokenizer: Tokenizer, weights: bool = True) -> PromptSchedule:
    return parse(prompt, tokenizer, 4, weights)


@pytest.mark.parametrize(
    ("prompt", "same"),
    [
        ("embedding:mytoy, sunny", "mytoy, sunny"),
        ("a cat, embedding:mytoy", "a cat, mytoy"),
        ("embedding:mytoy.", "mytoy."),
        ("embedding:mytoy.safetensors", "mytoy"),
        ("embedding:mytoy.pt, sunny", "mytoy, sunny"),
        ("embedding:sdxl/mytoy", "mytoy"),
        ("embedding:sdxl\\toys\\mytoy.safetensors cat", "mytoy cat"),
        ("EMBEDDING:MyToy", "mytoy"),
        ("(embedding:mytoy:1.2)", "(mytoy:1.2)"),
        ("(embedding:sdxl/mytoy.safetensors:1.2) b", "(mytoy:1.2) b"),
        ("((embedding:mytoy))", "((mytoy))"),
        ("[embedding:mytoy:embedding:badhands:0.5]", "[mytoy:badhands:0.5]"),
        ("[embedding:mytoy|cat]", "[mytoy|cat]"),
        ("embedding:mytoy embedding:mytoy", "mytoy mytoy"),
        ("embedding:cat-toy", "<cat-toy>"),
        ("embedding:<cat-toy>", "<cat-toy>"),
        ("embedding:SD-XL-base-1.0_3000_ti.safetensors", "<cat-toy>"),
        ("embedding:my-toy-v2", "<my-toy-v2>"),
        (r"embedding:toy_\(style\)", r"toy_\(style\)"),
        ("embedding:toy_(style)", "toy_(style)"),
        ("<embed:mytoy> cat", "mytoy cat"),
        ("<embedding:sdxl/mytoy.safetensors>", "mytoy"),
        ("a <mytoy> cat", "a mytoy cat"),
        ("a<mytoy>b", "a mytoy b"),
        ("(<mytoy>:1.3)", "(mytoy:1.3)"),
    ],
)
def test_a_reference_is_the_placeholder_token(tokenizer: Tokenizer, prompt: str, same: str) -> None:
    assert schedule(prompt, tokenizer) == schedule(same, tokenizer)
    placeholders = {number for chunk in schedule(prompt, tokenizer).variants[0] for number in chunk.ids}
    assert max(placeholders) >= 49408


@pytest.mark.parametrize("prompt", ["word embedding: a diagram", "an embedding", r"embedding\:mytoys", "embedding:, b"])
def test_other_text_is_left_alone(tokenizer: Tokenizer, prompt: str) -> None:
    (variant,) = schedule(prompt, tokenizer).variants
    ids = [number for chunk in variant for number in chunk.ids]
    assert ids == tokenizer.encode(prompt.replace("\\:", ":"))


@pytest.mark.parametrize("weights", [True, False])
def test_a_reference_needs_no_prompt_weights(tokenizer: Tokenizer, weights: bool) -> None:
    assert schedule("embedding:mytoy", tokenizer, weights) == schedule("mytoy", tokenizer, weights)


def test_a_placeholder_token_that_looks_like_a_reference_is_itself() -> None:
    tokenizer = Tokenizer()
    tokenizer.add_placeholder("mytoy", 2)
    tokenizer.add_placeholder("embedding:mytoy", 1)
    (variant,) = schedule("embedding:mytoy", tokenizer).variants
    assert [chunk.ids for chunk in variant] == [(49410,)]


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("a embedding:badtoy, b", "badtoy"),
        ("(embedding:mytoy-2:1.2)", "mytoy-2"),
        ("embedding:mytoy.v2", "mytoy.v2"),
        ("embedding:mytoy_1", "mytoy_1"),  # a vector of mytoy here, a file there
        ("embedding:mytoys", "mytoys"),
        ("<embed:none>", "none"),
        ("embedding:both", "both"),  # two embeddings are in that file
    ],
)
def test_an_unknown_embedding_is_refused_by_name(tokenizer: Tokenizer, prompt: str, name: str) -> None:
    for weights in (True, False):
        with pytest.raises(
            UserError, match=rf"embedding:{name}, and no such embedding is loaded \(loaded: mytoy, <cat"
        ):
            schedule(prompt, tokenizer, weights)


def test_without_embeddings_the_message_says_so() -> None:
    with pytest.raises(UserError, match=r"loaded: none\); give its file to --textual_inversion_weight"):
        schedule("embedding:mytoy", Tokenizer())
