"""The prompt language, by the rules that AUTOMATIC1111 documents."""

from __future__ import annotations

import pytest

from gm.errors import UserError
from gm.text.bpe import decode_token
from gm.text.chunks import Chunk, TokenChunks
from gm.text.lexer import Token, tokenize
from gm.text.prompt_parser import Alternate, Emphasis, PromptSchedule, Scheduled, parse, parse_tree
from gm.text.tokenizer import Tokenizer


def weighted_words(variant: TokenChunks) -> list[tuple[str, float]]:
    """Return the tokens of a text as (words, weight), neighbors of one weight joined, and `/` between chunks."""
    actual: list[tuple[str, float]] = []
    for number, chunk in enumerate(variant):
        if number:
            actual.append(("/", 0.0))
        for token, weight in zip(chunk.ids, chunk.weights, strict=True):
            name = decode_token(token) if token < 49408 else f"<{token - 49408}>"
            if actual and actual[-1][0] != "/" and actual[-1][1] == weight:
                actual[-1] = (f"{actual[-1][0]} {name}", weight)
            else:
                actual.append((name, weight))
    return actual


def texts(schedule: PromptSchedule) -> list[str]:
    """Return the text of each step, without weights."""
    variants = [" ".join(words for words, _ in weighted_words(variant)) for variant in schedule.variants]
    return [variants[number] for number in schedule.by_step]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("normal text", [("normal text", 1)]),
        ("an (important) word", [("an", 1), ("important", 1.1), ("word", 1)]),
        ("(unbalanced", [("un- balanced", 1.1)]),
        (r"\(literal\]", [("( literal ]", 1)]),
        (r"\(a:1.3\) \[b\|c\] \\", [("( a : 1 . 3 ) [ b | c ] \\", 1)]),
        ("(cat:1.3)", [("cat", 1.3)]),
        ("((cat))", [("cat", 1.21)]),
        ("[cat]", [("cat", 1 / 1.1)]),
        ("[[cat]]", [("cat", 1 / 1.21)]),
        ("[(cat)] dog", [("cat dog", 1)]),
        ("(a (cat:2):1.5) b", [("a", 1.5), ("cat", 3), ("b", 1)]),
        ("(a cat: 1.2 )", [("a cat", 1.2)]),
        ("(cat:.5) (dog:2.) (hat:+3)", [("cat", 0.5), ("dog", 2), ("hat", 3)]),
        ("(cat:0) (dog:-1)", [("cat", 0), ("dog", -1)]),
        ("(blue:sky:1.2)", [("blue : sky", 1.2)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            [
                *[("a", 1), ("house", 1.573), ("on", 1), ("a", 1.1), ("hill", 0.55)],
                *[(", sun ,", 1.1), ("sky", 1.4641), (".", 1.1)],
            ],
        ),
        # Text that only looks like syntax.
        ("(word:abc)", [("word : abc", 1.1)]),
        ("(cat:1.2.3)", [("cat : 1 . 2 . 3", 1.1)]),
        ("cat:1.3) dog", [("cat : 1 . 3 ) dog", 1)]),
        ("a] b: c | d", [("a ] b : c | d", 1)]),
        ("a [unbalanced", [("a", 1), ("un- balanced", 1 / 1.1)]),
        ("[cat:dog]", [("cat : dog", 1 / 1.1)]),
        ("[a:b:c:3]", [("a : b : c : 3", 1 / 1.1)]),
        ("(a|b)", [("a | b", 1.1)]),
        ("(a [b) c]", [("a", 1.1), ("b", 1), ("c", 1 / 1.1)]),
        ("breakfast BREAKFAST break", [("breakfast breakfast break", 1)]),
        # Chunks.
        ("a BREAK b", [("a", 1), ("/", 0), ("b", 1)]),
        ("(a BREAK b:1.3)", [("a", 1.3), ("/", 0), ("b", 1.3)]),
        ("BREAK a BREAK BREAK b BREAK", [("a", 1), ("/", 0), ("b", 1)]),
        # Placeholder tokens, whatever characters they contain.
        ("(<toy>:1.2) <toy>", [("<0> <1>", 1.2), ("<0> <1>", 1)]),
        ("(<TOY>:1.2)<toy> <toy>_1", [("<0> <1>", 1.2), ("<0> <1>", 1)]),
        ("(<a:b|c]>:1.2)", [("<2>", 1.2)]),
        (r"<A\:B\|c\]>", [("<2>", 1)]),
        ("[<A:b|c]>]", [("<2>", 1 / 1.1)]),
        ("BREAK-dance break-dance", [("<3> <4> <5> <3> <4> <5>", 1)]),
    ],
)
def test_weights(tokenizer: Tokenizer, prompt: str, expected: list[tuple[str, float]]) -> None:
    schedule = parse(prompt, tokenizer, 4)
    assert schedule.by_step == (0, 0, 0, 0)
    actual = weighted_words(schedule.variants[0])
    assert [words for words, _ in actual] == [words for words, _ in expected]
    assert [weight for _, weight in actual] == pytest.approx([weight for _, weight in expected], abs=1e-6)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("test", "test " * 10),
        ("[a|b]", "a b a b a b a b a b"),
        ("[a|b|c]", "a b c a b c a b c a"),
        ("[a|b:2]", "a b:2 a b:2 a b:2 a b:2 a b:2"),
        ("[a||b]", "a - b a - b a - b a"),
        ("[|]", "- - - - - - - - - -"),
        ("[a|(b:1.1)]", "a b a b a b a b a b"),
        ("[(a|b)|c]", "a|b c a|b c a|b c a|b c a|b c"),
        ("[a:b:0.4]", "a a a a b b b b b b"),
        ("[a:b:.25]", "a a b b b b b b b b"),
        ("[a:b:4]", "a a a a b b b b b b"),
        ("[a:b: 4 ]", "a a a a b b b b b b"),
        ("[a:b:1]", "a b b b b b b b b b"),
        ("[a:b:1.0]", "a a a a a a a a a a"),
        ("[a:b:2.9]", "a a b b b b b b b b"),
        ("[a:b:0]", "b b b b b b b b b b"),
        ("[a:b:-3]", "b b b b b b b b b b"),
        ("[a:b:11]", "a a a a a a a a a a"),
        ("[a:b:" + "9" * 400 + "]", "a a a a a a a a a a"),
        ("[a:b:-" + "9" * 400 + "]", "b b b b b b b b b b"),
        ("[b:3]", "- - - b b b b b b b"),
        ("[a::0.3]", "a a a - - - - - - -"),
        ("[(a:2):3]", "- - - a a a a a a a"),
        ("[[[b]]:2]", "- - b b b b b b b b"),
        ("[b:[c:d:2]:1]", "b c d d d d d d d d"),
        ("[[a|b]:[c|d|e]:0.5]", "a b a b a e c d e c"),
        ("[[a:b:4]|c]", "a c a c b c b c b c"),
        ("[a:3][b:5]", "- - - a a ab ab ab ab ab"),
        (r"[a\|b|c\:d]", "a|b c:d a|b c:d a|b c:d a|b c:d a|b c:d"),
        ("((a][:b:c [d:3]", "a]:b:c a]:b:c a]:b:c " + "a]:b:cd " * 7),
        ("[a (b|c]", "ab c ab c ab c ab c ab c"),
        ("[<toy>|<a:b|c]>]", "<0><1> <2> " * 5),
        ("[<a:b|c]>:<toy>:8]", "<2> " * 8 + "<0><1> <0><1>"),
    ],
)
def test_text_of_each_of_ten_steps(tokenizer: Tokenizer, prompt: str, expected: str) -> None:
    actual = [text.replace(" ", "") or "-" for text in texts(parse(prompt, tokenizer, 10))]
    # Adjacent letters are one word to CLIP; `texts` joins its tokens.
    assert [text.replace("a-b", "ab") for text in actual] == expected.split()


def test_the_documented_example_of_editing(tokenizer: Tokenizer) -> None:
    prompt = (
        "fantasy landscape with a [mountain:lake:0.25] and [an oak:a christmas tree:0.75]"
        "[ in foreground::0.6][ in background:0.25] [shoddy:masterful:0.5]"
    )
    schedule = parse(prompt, tokenizer, 100)
    actual = texts(schedule)
    assert [actual[k] for k in (0, 25, 50, 60, 75)] == [
        "fantasy landscape with a mountain and an oak in foreground sho- ddy",
        "fantasy landscape with a lake and an oak in foreground in background sho- ddy",
        "fantasy landscape with a lake and an oak in foreground in background masterful",
        "fantasy landscape with a lake and an oak in background masterful",
        "fantasy landscape with a lake and a christmas tree in background masterful",
    ]
    assert schedule.by_step == (0,) * 25 + (1,) * 25 + (2,) * 10 + (3,) * 15 + (4,) * 25


def test_a_fraction_of_the_steps_is_rounded_as_it_is_written(tokenizer: Tokenizer) -> None:
    assert int(0.29 * 100) == 28
    assert parse("[a:b:0.29]", tokenizer, 100).by_step == (0,) * 29 + (1,) * 71


def test_placeholder_tokens_are_recognized_as_registered_and_as_cleaned() -> None:
    tokenizer = Tokenizer()
    tokenizer.add_placeholder("ﬁ[x|y]", 1)  # the ligature becomes two letters
    tokenizer.add_placeholder("&lt;a|b&gt;", 1)
    for prompt in ("[ﬁ[x|y]|&lt;A|b&gt;]", "[FI[X|Y]|<a|b>]"):
        schedule = parse(prompt, tokenizer, 3)
        assert [variant[0].ids for variant in schedule.variants] == [(49408,), (49409,)]
        assert schedule.by_step == (0, 1, 0)


def test_a_placeholder_token_is_not_a_number() -> None:
    tokenizer = Tokenizer()
    tokenizer.add_placeholder("1.5", 1)
    assert weighted_words(parse("(cat:1.5) (cat:1.6)", tokenizer, 1).variants[0]) == [("cat : <0>", 1.1), ("cat", 1.6)]


def test_weights_may_alternate(tokenizer: Tokenizer) -> None:
    schedule = parse("(cat:[1.2|1.4])", tokenizer, 3)
    assert [weighted_words(v) for v in schedule.variants] == [[("cat", 1.2)], [("cat", 1.4)]]
    assert schedule.by_step == (0, 1, 0)


def test_equal_texts_are_one_variant(tokenizer: Tokenizer) -> None:
    assert parse("a [cat|CAT| cat]", tokenizer, 5).by_step == (0,) * 5
    assert parse("[b|a|b|c]", tokenizer, 8).by_step == (0, 1, 0, 2, 0, 1, 0, 2)


def test_all_variants_of_a_prompt_have_equally_many_chunks(tokenizer: Tokenizer) -> None:
    schedule = parse("[a BREAK b BREAK c:a:2]", tokenizer, 4)
    assert schedule.by_step == (0, 0, 1, 1)
    assert [len(variant) for variant in schedule.variants] == [3, 3]
    assert schedule.variants[1] == (Chunk((320,), (1.0,)), Chunk(), Chunk())


def test_without_weights_everything_is_text(tokenizer: Tokenizer) -> None:
    for prompt in ("(cat:1.3) [dog]", "a BREAK b", r"[a|b] \(", "(" * 200, "<toy> (<a:b|c]>)"):
        schedule = parse(prompt, tokenizer, 7, weights=False)
        assert schedule.by_step == (0,) * 7
        (variant,) = schedule.variants
        assert [number for chunk in variant for number in chunk.ids] == tokenizer.encode(prompt)
        assert {weight for chunk in variant for weight in chunk.weights} == {1.0}
    assert [len(chunk.ids) for chunk in parse("( " * 200, tokenizer, 7, weights=False).variants[0]] == [75, 75, 50]


@pytest.mark.parametrize("prompt", ["", " ", "()", "[]", "(((", "[|]", "[:3]", "BREAK", "(:1.2)"])
def test_an_empty_prompt_is_one_empty_chunk(tokenizer: Tokenizer, prompt: str) -> None:
    assert parse(prompt, tokenizer, 2) == PromptSchedule(((Chunk(),),), (0, 0))


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a (cat:1001)", "'cat' in the prompt weighs 1001; keep weights within ±1000"),
        ("(cat\n:-2e3) ((dog:-100):11)", "'dog' in the prompt weighs -1100; keep weights within ±1000"),
        ("(" * 10000 + "cat", "'cat' in the prompt weighs inf; keep weights within ±1000"),
        ("(" * 10000 + "(cat:0)", "'cat' in the prompt weighs nan; keep weights within ±1000"),
    ],
)
def test_weights_beyond_the_limit_are_refused(tokenizer: Tokenizer, prompt: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        parse(prompt, tokenizer, 1)
    assert str(error.value) == message
    parse("(cat:1000) (dog:-1000) ( :9999)", tokenizer, 1)


def test_syntax_tree_of_a_prompt(tokenizer: Tokenizer) -> None:
    alternate, scheduled, unclosed, _ = parse_tree(tokenize("[a|(b|c)][[d]:e:0.5](f", tokenizer), 10)
    assert isinstance(alternate, Alternate)
    assert len(alternate.alternatives) == 2  # the second bar belongs to the round brackets
    assert isinstance(alternate.alternatives[1][0], Emphasis)
    assert isinstance(scheduled, Scheduled)
    assert isinstance(scheduled.before[0], Emphasis)
    assert (scheduled.after, scheduled.start) == ((Token("text", "e"),), 5)
    assert unclosed == Token("(", "("), "a bracket that is never closed is a token of the tree"
