"""Prompts that do not use the loaded embeddings, or call them by the names of their files."""

from __future__ import annotations

import dataclasses

import pytest

from gm.embeddings.embedding import Embedding
from gm.errors import UserError
from gm.sampling import embedding_use
from gm.text.prompt_parser import parse
from gm.text.tokenizer import Tokenizer
from tests.sampling.generation import toy


def check(*prompts: str, source: str = "a/My Toy v2.safetensors", token: str = "<My-Toy-v2>", literal: bool = False):
    concept: Embedding = dataclasses.replace(toy(token=token), source=source)
    tokenizer = Tokenizer()
    tokenizer.add_placeholder(token, concept.num_vectors, concept.name)
    schedules = {prompt: parse(prompt, tokenizer, 2) for prompt in prompts}
    embedding_use.check([concept], tokenizer, schedules, "end_of_text", literal)


@pytest.mark.parametrize(
    ("prompt", "source", "token"),
    [
        ("a My Toy v2", "a/My Toy v2.safetensors", "<My-Toy-v2>"),
        ("a cat, sunny", "cat.safetensors", "<cat>"),
        ("(my_toy:1.2)", "my_toy.ckpt", "<other>"),
    ],
)
def test_a_prompt_that_calls_an_embedding_by_its_file_is_refused(prompt: str, source: str, token: str) -> None:
    with pytest.raises(UserError) as caught:
        check(prompt, "ugly", source=source, token=token)
    name = source.split("/")[-1].split(".")[0]
    assert str(caught.value) == (
        f"the prompt says {name!r}, but the placeholder token of {source} is {token}; write {token}, "
        f'or choose another: --textual_inversion_weight "{source}=<token>"'
    )


def test_a_prompt_without_the_name_of_the_file_is_only_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    for prompt in ("a dog", "My Toy v20", "aMy Toy v2"):
        caplog.clear()
        check(prompt)
        assert "no prompt uses <My-Toy-v2>" in caplog.text
    caplog.clear()
    check("a My Toy v2", literal=True)  # the app, whose Compare generates without the placeholder token
    assert "no prompt uses <My-Toy-v2>" in caplog.text


def test_the_name_beside_the_placeholder_token_is_text(caplog: pytest.LogCaptureFixture) -> None:
    check("a My Toy v2", "a <my-toy-v2>")
    check("a cat and a <cat>", source="cat.pt", token="<cat>")
    check("embedding:cat", source="cat.pt", token="<cat>")
    assert caplog.text == ""
