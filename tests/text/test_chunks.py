"""Where chunks end, and the arrays that the text encoders take."""

from __future__ import annotations

import numpy as np
import pytest

from gm.text import chunks
from gm.text.chunks import Chunk
from gm.text.prompt_parser import parse
from gm.text.tokenizer import END, START, Tokenizer

CAT, COMMA = 2368, 267


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    tokenizer = Tokenizer()
    for placeholder_token, num_vectors in (("<one>", 1), ("<two>", 2), ("<ten>", 10), ("<all>", 75), ("<w>", 20)):
        tokenizer.add_placeholder(placeholder_token, num_vectors)
    return tokenizer


def sizes(prompt: str, tokenizer: Tokenizer) -> list[int]:
    """Return the number of ids in each chunk; all of them, in order, are the prompt's."""
    (variant,) = parse(prompt, tokenizer, 1).variants
    assert [number for chunk in variant for number in chunk.ids] == tokenizer.encode(prompt.replace("BREAK", " "))
    return [len(chunk.ids) for chunk in variant]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("cat " * 75, [75]),
        ("cat " * 76, [75, 1]),
        ("cat " * 150, [75, 75]),
        ("cat " * 151, [75, 75, 1]),
        ("cat BREAK" + " cat" * 75, [1, 75]),
        ("cat " * 75 + "BREAK cat", [75, 1]),
        ("cat " * 76 + "BREAK cat", [75, 1, 1]),
        # A placeholder token moves to the next chunk as a whole.
        ("cat " * 73 + "<two>", [75]),
        ("cat " * 74 + "<two>", [74, 2]),
        ("cat " * 75 + "<two>", [75, 2]),
        ("cat " * 66 + "<ten> cat", [66, 11]),
        ("cat " * 74 + "<one> <two>", [75, 2]),
        ("<all>", [75]),
        ("cat <all> cat", [1, 75, 1]),
        ("<all> <all>", [75, 75]),
        ("<two> " * 38, [74, 2]),
        ("cat " * 74 + "<two> <two>_1", [74, 2]),
        ("cat " * 74 + "<ten>_8 <ten>_9", [74, 2]),
        # Two placeholder tokens with consecutive ids are still two, and so are two ordinary consecutive ids.
        ("cat " * 74 + "<one> <two>_1", [75, 1]),
        ("cat " * 74 + '! "', [75, 1]),
        # A full chunk ends after a comma, if that is near enough.
        ("cat " * 54 + "," + " cat" * 21, [75, 1]),
        ("cat " * 55 + "," + " cat" * 20, [56, 20]),
        ("cat " * 70 + ", cat, cat" + " cat" * 10, [73, 11]),
        ("cat " * 74 + ", cat", [75, 1]),
        ("cat " * 75 + ", cat", [75, 2]),
        ("cat, " * 37 + "cat, cat", [75, 2]),
        ("cat, " * 37 + "cat cat", [74, 2]),
        ("cat " * 60 + ", cat cat " * 6, [75, 3]),
        # Only a full one: a placeholder token that does not fit takes no text with it.
        ("cat " * 60 + ", <ten> <ten>", [71, 10]),
        ("cat " * 57 + "," + " dog" * 6 + " <w> end", [64, 21]),
        ("cat " * 60 + "," + " cat" * 14 + " <ten>", [61, 24]),
        ("cat " * 60 + "," + " cat" * 14 + " <all>", [61, 14, 75]),
        ("cat " * 60 + ", cat <all>", [62, 75]),
    ],
)
def test_where_chunks_end(tokenizer: Tokenizer, prompt: str, expected: list[int]) -> None:
    assert sizes(prompt, tokenizer) == expected


@pytest.mark.parametrize("seed", range(40))
def test_no_id_is_lost_and_no_placeholder_token_is_split(tokenizer: Tokenizer, seed: int) -> None:
    random = np.random.default_rng(seed)
    words = random.choice(["cat", "dog", ",", "<one>", "<two>", "<ten>", "antidisestablishmentarianism"], 200)
    prompt = " ".join(words)
    assert max(sizes(prompt, tokenizer)) <= 75
    (variant,) = parse(prompt, tokenizer, 1).variants
    for ids in tokenizer.placeholders.values():
        for chunk in variant:
            assert chunk.ids.count(ids[0]) == chunk.ids.count(ids[-1])


def test_weights_move_with_their_ids(tokenizer: Tokenizer) -> None:
    (variant,) = parse("cat " * 60 + ", cat (cat:2) <two> (<ten>:3) cat", tokenizer, 1).variants
    assert variant[0].weights == (1.0,) * 61
    assert variant[1].ids == (CAT, CAT, *tokenizer.placeholders["<two>"], *tokenizer.placeholders["<ten>"], CAT)
    assert variant[1].weights == (1.0, 2.0, 1.0, 1.0, *(3.0,) * 10, 1.0)


def test_chunks_of_another_length() -> None:
    (variant,) = parse("cat cat cat, cat cat cat cat", Tokenizer(context_length=8), 1).variants
    assert variant == (Chunk((CAT, CAT, CAT, COMMA), (1.0,) * 4), Chunk((CAT,) * 4, (1.0,) * 4))


def test_padding_appends_empty_chunks() -> None:
    chunk = Chunk((CAT,), (2.0,))
    assert chunks.pad_chunks((chunk,), 3) == (chunk, Chunk(), Chunk())
    assert chunks.pad_chunks((chunk, chunk), 1) == (chunk, chunk)


def test_arrays_of_each_encoder(tokenizer: Tokenizer) -> None:
    (variant,) = parse("(a <two>:1.5) cat BREAK BREAK", tokenizer, 1).variants
    by_encoder, weights = chunks.to_arrays([*variant, Chunk()], 77)
    assert list(by_encoder) == ["clip_l", "clip_g", "clip_h"]
    assert weights.dtype == np.float32
    assert weights.tolist() == [[1.0, 1.5, 1.5, 1.5, *[1.0] * 73], [1.0] * 77]
    for encoder, padding in (("clip_l", END), ("clip_g", 0), ("clip_h", 0)):
        ids = by_encoder[encoder]
        assert ids.dtype == np.int32
        assert ids.tolist() == tokenizer(["a <two> cat", ""], padding).tolist()
        assert ids[1].tolist() == [START, END, *[padding] * 75]
