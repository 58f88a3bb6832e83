"""The tokenizer against OpenAI's own, and the rules of placeholders.

The reference is `clip/simple_tokenizer.py` of the package clip-anytorch, loaded alone: the package itself imports
torchvision.
"""

from __future__ import annotations

import importlib.util
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from gm.errors import UserError
from gm.text import byte_pair
from gm.text.tokenizer import END, START, VOCABULARY, Tokenizer, pool_positions

A, PHOTO, OF, CAT = 320, 1125, 539, 2368

PLAIN = [
    "a photo of a cat",
    "A Photo OF a CAT",
    "An astronaut riding a horse on Mars, 4k, ultra-detailed",
    "photograph, depth of field -- bokeh; (masterpiece:1.2) [blurry]",
    "internationalization antidisestablishmentarianism xqzzvk",
]
AWKWARD = [
    "",
    " ",
    " \t\r\n ",
    "  many   spaces \t and\n\nlines\r\nhere ",
    "no\u00a0break\u2003em\u3000ideographic\u2028line\u2029paragraph\x85next\x0bvertical\x0cfeed",
    "fish &amp; chips &lt;b&gt; &quot;x&quot; &#39;s &#x41; &eacute; &nbsp; &unknown; &copy2024",
    "fish &amp;amp; chips &amp;lt;b&amp;gt; &amp;amp;amp;amp;lt;",
    "<b>bold</b> &amp;amp;lt;",
    "full-width \uff21\uff22\uff43 \uff11\uff12\uff01 \uff1ccat\uff1e",
    "zero\u200bwidth\u200cjoin\u200der\ufeffmark\u2060word",
    "\ufeffmark first",
    "漢字とひらがなとカタカナ",
    "한국어 문장",
    "ภาษาไทย हिन्दी العربية עברית",
    "👩‍👩‍👧‍👦 family ❤️ 🏳️‍🌈 👍🏽 🇩🇪",
    "it's they're we've I'm he'll she'd don't o'clock 'tis rock'n'roll 's 't",
    "IT'S THEY'RE WE'VE I'M HE'LL SHE'D DON'T",
    "it\u2019s \u201cquoted\u201d \u2018so\u2019 it`s",
    "it'\u017f they'\u017felf",  # the long s equals s only in a comparison that folds case
    "'''s ''''",
    "2024 12345 3.14159 1,000 ½ ² Ⅷ ٣ ๓ v1.5",
    "<|startoftext|>",
    "a <|startoftext|> b <|endoftext|> c",
    "<|STARTOFTEXT|> <|EndOfText|>",
    "x<|endoftext|>y<|startoftext|>'s",
    "!!<|endoftext|>!! <<|endoftext|>> <|endoftext|",
    "<|\u017ftartoftext|>",
    "mojibake: âœ” donâ€™t cafÃ©",
    "cafe\u0301 caf\u00e9 na\u00efve Stra\u00dfe \u0152UVRE \ufb01ne \ufb02ow",
    "\u0130stanbul ΟΔΥΣΣΕΥΣ Σ \u01c5 \u212a \u212b \u1e9e",
    "\x00null \x07bell \x1b[31mred\x1b[0m \x1c\x1d\x1e\x1f",
    "\x1c between \x1d",
    "lone \ud800 surrogate \udc00, pair \ud83d\ude00",
    "\U000e0041\U0010ffff\ufffe\ufffd",
    "_under_score_ --- ... ?!?! $$$ #tag @name a/b\\c ~`^|",
    "<cat> <cat>_1 <cat>-toy *",
    "a" * 400,
    "supercalifragilistic" * 40,
    "漢" * 200,
    "!" * 300,
    "x1" * 200,
]
BLOCKS = [  # first and last code point
    (0x20, 0x7E),
    (0x00, 0x2FF),
    (0x300, 0x36F),
    (0x370, 0x5FF),
    (0x600, 0x6FF),
    (0x900, 0xDFF),
    (0xE00, 0xE7F),
    (0x1E00, 0x1FFF),
    (0x2000, 0x22FF),
    (0x2460, 0x27BF),
    (0x3040, 0x30FF),
    (0x4E00, 0x9FFF),
    (0xAC00, 0xD7A3),
    (0xD800, 0xDFFF),
    (0xF900, 0xFFFF),
    (0x1D400, 0x1D7FF),
    (0x1F300, 0x1FAFF),
    (0x0, 0x10FFFF),
]
FRAGMENTS = [
    "'s",
    "'LL",
    "'d",
    "&amp;",
    "&lt;",
    "&#233;",
    "<|startoftext|>",
    "<|endoftext|>",
    " the ",
    "12",
    "\n",
    "\u0130",
    "\u017f",
]


@pytest.fixture(scope="module")
def openai_source():
    """OpenAI's module. Where it is not installed the tests fail."""
    spec = importlib.util.find_spec("clip")
    assert spec is not None, "the reference is missing: pip install --no-deps clip-anytorch==2.6.0"
    source = Path(spec.submodule_search_locations[0], "simple_tokenizer.py")
    assert source.is_file(), f"{source} is missing: pip install --no-deps clip-anytorch==2.6.0"
    spec = importlib.util.spec_from_file_location("openai_simple_tokenizer", source)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def openai(openai_source):
    """OpenAI's tokenizer with its own copy of the vocabulary."""
    return openai_source.SimpleTokenizer(openai_source.default_bpe())


def random_texts(count: int) -> list[str]:
    rng = np.random.default_rng(20240501)
    texts = []
    for _ in range(count):
        pieces = []
        for _ in range(rng.integers(1, 6)):
            first, last = BLOCKS[rng.integers(len(BLOCKS))]
            pieces.append("".join(map(chr, rng.integers(first, last + 1, rng.integers(1, 16)))))
            pieces.append(FRAGMENTS[rng.integers(len(FRAGMENTS))] if rng.random() < 0.3 else " " * rng.integers(3))
        texts.append("".join(pieces))
    return texts


def openai_tokenize(openai, texts: list[str]) -> np.ndarray:
    """What `clip.tokenize(texts, truncate=True)` gives: cut to 77, the last made the end, zeros after."""
    table = np.zeros((len(texts), 77), np.int64)
    for row, text in zip(table, texts, strict=True):
        ids = [START, *openai.encode(text), END]
        if len(ids) > 77:
            ids = [*ids[:76], END]
        row[: len(ids)] = ids
    return table


def with_placeholders(**num_vectors: int) -> Tokenizer:
    tokenizer = Tokenizer()
    for name, number in num_vectors.items():
        tokenizer.add_placeholder(f"<{name}>", number)
    return tokenizer


class TestAgainstOpenAI:
    def test_markers_and_size_of_the_vocabulary(self, openai):
        assert openai.encoder["<|startoftext|>"] == START == 49406
        assert openai.encoder["<|endoftext|>"] == END == 49407
        assert len(openai.encoder) == VOCABULARY == 49408

    def test_known_ids(self):
        assert Tokenizer().encode("a photo of a cat") == [A, PHOTO, OF, A, CAT]

    @pytest.mark.parametrize("text", PLAIN + AWKWARD, ids=lambda text: ascii(text[:30]))
    def test_text(self, openai, text):
        assert Tokenizer().encode(text) == openai.encode(text)

    def test_random_text(self, openai):
        tokenizer = Tokenizer()
        texts = random_texts(4000)
        wrong = [text for text in texts if tokenizer.encode(text) != openai.encode(text)]
        assert not wrong, ascii(wrong[:5])

    def test_cleaning(self, openai_source):
        for text in [*PLAIN, *AWKWARD, *random_texts(500), "&nbsp;a&nbsp;&nbsp;b&nbsp;"]:
            expected = openai_source.whitespace_clean(openai_source.basic_clean(text)).lower()
            assert byte_pair.clean(text) == expected, ascii(text)

    def test_every_id_of_the_vocabulary(self, openai):
        """Each entry that is text by itself, as a word: it meets every merge of the file in some word."""
        tokenizer = Tokenizer()
        words = [openai.decode([number]).strip() for number in range(512, START)]
        assert tokenizer.encode(" ".join(words)) == openai.encode(" ".join(words))

    def test_placeholders_leave_other_text_alone(self, openai):
        tokenizer = with_placeholders(unused=3)
        for text in [*PLAIN, *AWKWARD, *random_texts(500)]:
            assert tokenizer.encode(text) == openai.encode(text), ascii(text)

    def test_table_padded_with_zero(self, openai):
        texts = [*PLAIN, *AWKWARD, *random_texts(500), *(" ".join(["cat"] * n) for n in range(73, 79))]
        table = Tokenizer()(texts, padding=0)
        assert table.dtype == np.int32
        np.testing.assert_array_equal(table, openai_tokenize(openai, texts))

    def test_table_padded_with_end(self, openai, tmp_path, monkeypatch):
        """As transformers' CLIPTokenizer, made from the same vocabulary (it cleans less: only plain text compares)."""
        monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
        from transformers import CLIPTokenizer

        (tmp_path / "vocab.json").write_text(json.dumps(openai.encoder))
        merges = "\n".join(" ".join(pair) for pair in openai.bpe_ranks)
        (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
        reference = CLIPTokenizer.from_pretrained(tmp_path)
        texts = [*PLAIN, "", "it's 2024", *(" ".join(["cat"] * n) for n in range(73, 79))]
        expected = reference(texts, padding="max_length", max_length=77, truncation=True, return_tensors="np")
        np.testing.assert_array_equal(Tokenizer()(texts, padding=END), expected.input_ids)

    def test_table_for_other_positions(self):
        table = Tokenizer(positions=6)(["a cat", "a photo of a cat"], padding=9)
        assert table.tolist() == [[START, A, CAT, END, 9, 9], [START, A, PHOTO, OF, A, END]]
        assert Tokenizer(positions=6)([], padding=9).shape == (0, 6)


class TestSpeed:
    def test_vocabulary_is_read_once_and_quickly(self):
        byte_pair._merges.cache_clear()
        byte_pair._encode_word.cache_clear()
        began = time.perf_counter()
        Tokenizer().encode("a")
        assert time.perf_counter() - began < 2
        Tokenizer().encode("another")
        assert byte_pair._merges.cache_info().misses == 1

    def test_words_are_remembered(self):
        byte_pair._encode_word.cache_clear()
        assert Tokenizer().encode("cat") == Tokenizer().encode("a CAT")[1:]
        assert byte_pair._encode_word.cache_info().hits == 1


class TestPlaceholderIds:
    def test_ids_follow_the_vocabulary_in_order_of_registration(self):
        tokenizer = Tokenizer()
        assert tokenizer.add_placeholder("<cat>", 2) == (49408, 49409)
        assert tokenizer.add_placeholder("mytoy", 1) == (49410,)
        assert tokenizer.add_placeholder("<Dog>", 3) == (49411, 49412, 49413)
        assert tokenizer.placeholders == {
            "<cat>": (49408, 49409),
            "mytoy": (49410,),
            "<Dog>": (49411, 49412, 49413),
        }

    def test_a_refused_placeholder_leaves_no_trace(self):
        tokenizer = with_placeholders(t=2)
        for word, number in [("<t>", 1), ("<u>", 0), ("<u>", 76), ("cat", 1), ("<t>_1", 1)]:
            with pytest.raises(UserError):
                tokenizer.add_placeholder(word, number)
        assert tokenizer.placeholders == {"<t>": (49408, 49409)}
        assert tokenizer.add_placeholder("<u>", 1) == (49410,)
        assert tokenizer.encode("<t> <u>") == [49408, 49409, 49410]

    def test_tokenizers_share_no_placeholders(self):
        with_placeholders(t=1)
        assert Tokenizer().placeholders == {}
        assert max(Tokenizer().encode("<t>")) < VOCABULARY

    def test_as_many_vectors_as_fit(self):
        tokenizer = Tokenizer()
        ids = tokenizer.add_placeholder("<t>", 75)
        assert tokenizer(["<t>"], padding=0)[0].tolist() == [START, *ids, END]
        assert Tokenizer(positions=8).add_placeholder("<t>", 6) == tuple(range(49408, 49414))


class TestMatching:
    def test_in_a_sentence(self):
        assert with_placeholders(t=2).encode("a photo of <t>, a cat") == [A, PHOTO, OF, 49408, 49409, 267, A, CAT]

    @pytest.mark.parametrize(
        "text", ["<cat>", "<CAT>", "<Cat>", " <cat> ", "&lt;cat&gt;", "&amp;lt;cat&amp;gt;", "\uff1ccat\uff1e"]
    )
    @pytest.mark.parametrize("word", ["<cat>", "<CAT>", "&lt;Cat&gt;", "\uff1ccat\uff1e"])
    def test_cleaned_and_lower_cased_on_both_sides(self, word, text):
        tokenizer = Tokenizer()
        tokenizer.add_placeholder(word, 2)
        assert tokenizer.encode(f"a {text}") == [A, 49408, 49409]

    @pytest.mark.parametrize("first", ["<cat>", "<cat>-toy"])
    def test_longest_name_wins_in_either_order(self, first):
        tokenizer = Tokenizer()
        words = ["<cat>", "<cat>-toy"] if first == "<cat>" else ["<cat>-toy", "<cat>"]
        ids = {word: tokenizer.add_placeholder(word, 1)[0] for word in words}
        assert tokenizer.encode("<cat>-toy <cat> <cat>-toy") == [ids["<cat>-toy"], ids["<cat>"], ids["<cat>-toy"]]
        assert tokenizer.encode("<cat>-to") == [ids["<cat>"], *Tokenizer().encode("-to")]

    @pytest.mark.parametrize("text", ["mytoys", "amytoy", "mytoy2", "2mytoy", "mytoyé", "mytoy漢", "myto", "my toy"])
    def test_letters_and_digits_beside_a_word_hide_it(self, text):
        tokenizer = Tokenizer()
        tokenizer.add_placeholder("mytoy", 1)
        assert tokenizer.encode(text) == Tokenizer().encode(text)

    @pytest.mark.parametrize("before", ["", "a ", "(", "-", "_", "'"])
    @pytest.mark.parametrize("after", ["", " cat", ")", "-cat", "_", "'s", ",", "."])
    def test_other_neighbours_do_not(self, before, after):
        tokenizer = Tokenizer()
        tokenizer.add_placeholder("mytoy", 1)
        expected = [*Tokenizer().encode(before), 49408, *Tokenizer().encode(after)]
        assert tokenizer.encode(f"{before}mytoy{after}") == expected

    def test_only_an_edge_that_is_alphanumeric_minds_its_neighbour(self):
        tokenizer = Tokenizer()
        tokenizer.add_placeholder("toy*", 1)
        tokenizer.add_placeholder("*7", 1)
        assert tokenizer.encode("toy*s") == [49408, *Tokenizer().encode("s")]
        assert tokenizer.encode("mtoy*") == Tokenizer().encode("mtoy*")
        assert tokenizer.encode("s*7") == [*Tokenizer().encode("s"), 49409]
        assert tokenizer.encode("*77") == Tokenizer().encode("*77")

    def test_between_letters(self):
        assert with_placeholders(t=1).encode("cat<t>cat<t><t>") == [CAT, 49408, CAT, 49408, 49408]

    @pytest.mark.parametrize("word", ["s.*s", "[sks]", "(a|b)", "$sks^", "a+b?", "\\dog", "{3}x", "<a#b>"])
    def test_nothing_in_a_name_is_a_pattern(self, word):
        tokenizer = Tokenizer()
        tokenizer.add_placeholder(word, 1)
        assert tokenizer.encode(f"a {word} cat") == [A, 49408, CAT]
        for other in ["sxxs", "s", "a", "aab", "3x", "xxx", "5og"]:
            assert tokenizer.encode(other) == Tokenizer().encode(other)

    def test_names_not_in_latin_letters(self):
        tokenizer = Tokenizer()
        tokenizer.add_placeholder("Мойкот", 1)
        tokenizer.add_placeholder("🧸🧸", 1)
        assert tokenizer.encode("мойкот a🧸🧸a МОЙКОТ") == [49408, A, 49409, A, 49408]


class TestVectors:
    def test_each_vector_alone(self):
        tokenizer = with_placeholders(s=1, t=3)
        assert tokenizer.encode("<t>") == [49409, 49410, 49411]
        assert tokenizer.encode("<t>_1") == [49410]
        assert tokenizer.encode("<t>_2 <t>_1") == [49411, 49410]

    def test_a_prompt_expanded_by_hand(self):
        assert with_placeholders(t=2).encode("<t> <t>_1") == with_placeholders(t=2).encode("<t>") == [49408, 49409]
        assert with_placeholders(t=3).encode("a <T>  <T>_1\n<t>_2 cat") == [A, 49408, 49409, 49410, CAT]
        assert with_placeholders(t=3).encode("<t><t>_1") == [49408, 49409]

    def test_expanded_by_hand_is_per_occurrence(self):
        assert with_placeholders(t=2).encode("<t> <t> <t>_1 <t>") == [49408, 49409, 49408, 49409, 49408, 49409]

    def test_anything_between_and_it_is_not_expanded_by_hand(self):
        assert with_placeholders(t=2).encode("<t> a <t>_1") == [49408, 49409, A, 49409]
        assert with_placeholders(t=2).encode("<t>, <t>_1") == [49408, 49409, 267, 49409]
        assert with_placeholders(t=3).encode("<t> <t>_2") == [49408, 49409, 49410, 49410]

    def test_another_placeholder_s_vector_is_no_continuation(self):
        assert with_placeholders(t=2, u=2).encode("<t> <u>_1") == [49408, 49409, 49411]

    def test_a_word_of_one_vector_has_no_vector_names(self):
        assert with_placeholders(t=1).encode("<t>_1") == [49408, *Tokenizer().encode("_1")]
        tokenizer = with_placeholders(t=1)
        tokenizer.add_placeholder("<t>_1", 2)
        assert tokenizer.encode("<t> <t>_1") == [49408, 49409, 49410]

    def test_vector_numbers_are_whole(self):
        tokenizer = with_placeholders(t=12)
        assert tokenizer.encode("<t>_11") == [49419]
        assert tokenizer.encode("<t>_1") == [49409]
        assert tokenizer.encode("<t>_12") == [*range(49408, 49420), *Tokenizer().encode("_12")]


class TestTruncation:
    def test_text_after_the_last_placeholder_is_cut_quietly(self):
        table = with_placeholders(t=2)(["a <t>" + " cat" * 100], padding=0)
        assert table[0].tolist() == [START, A, 49408, 49409, *[CAT] * 72, END]

    def test_a_placeholder_may_be_the_last_that_fits(self):
        table = with_placeholders(t=2)(["cat " * 73 + "<t>"], padding=0)
        assert table[0].tolist() == [START, *[CAT] * 73, 49408, 49409, END]

    @pytest.mark.parametrize("words", [74, 75, 90])
    def test_no_id_of_a_placeholder_is_cut(self, words):
        tokenizer = with_placeholders(s=1, t=2)
        prompt = "cat " * words + "<t>"
        with pytest.raises(UserError) as error:
            tokenizer(["<s>", prompt, "<s>"], padding=0)
        assert str(error.value) == (
            f"prompt '{prompt[:60]}…' has {words + 2} tokens, at most 75 fit and placeholder '<t>' would be cut; "
            "shorten the prompt or put <t> nearer to its beginning"
        )

    def test_the_first_id_of_all_counts_too(self):
        with pytest.raises(UserError, match=r" has 76 tokens, at most 75 fit and placeholder '<t>' would be cut; "):
            with_placeholders(t=1)(["cat " * 75 + "<t>"], padding=0)

    def test_the_placeholder_cut_first_is_named(self):
        tokenizer = Tokenizer(positions=8)
        tokenizer.add_placeholder("<t>", 6)
        tokenizer.add_placeholder("<U>", 1)
        with pytest.raises(UserError, match=r"^prompt '.*' has 13 tokens, at most 6 fit and placeholder '<U>' would"):
            tokenizer(["<t> <u> <t>"], padding=0)

    def test_a_short_prompt_is_quoted_whole(self):
        prompt = "cat " * 14 + " <t>"
        assert len(prompt) == 60
        with pytest.raises(UserError) as error:
            with_placeholders(t=75)([prompt], padding=0)
        assert str(error.value).startswith(f"prompt '{prompt}' has 89 tokens, ")

    def test_the_message_is_one_line(self):
        with pytest.raises(UserError) as error:
            with_placeholders(t=75)(["a\ncat\n<t>"], padding=0)
        assert str(error.value) == (
            "prompt 'a\\ncat\\n<t>' has 77 tokens, at most 75 fit and placeholder '<t>' would be cut; "
            "shorten the prompt or put <t> nearer to its beginning"
        )


class TestRefusals:
    @pytest.mark.parametrize(
        ("word", "message"),
        [
            ("", "the placeholder is empty; give it a word such as '<concept>'"),
            (" \t", "the placeholder is empty; give it a word such as '<concept>'"),
            (
                "\x00\x07",
                r"nothing is left of placeholder '\x00\x07' in a cleaned prompt; give it a word such as '<concept>'",
            ),
            ("my toy", "placeholder 'my toy' holds white space; write one word, such as 'my-toy'"),
            (" <t>", "placeholder ' <t>' holds white space; write one word, such as '<t>'"),
            ("<t>\n", r"placeholder '<t>\n' holds white space; write one word, such as '<t>'"),
            ("my&nbsp;toy", "placeholder 'my&nbsp;toy' holds white space; write one word, such as 'my-toy'"),
            ("cat", "placeholder 'cat' is a single token already; use a new word, such as '<cat>'"),
            ("CAT", "placeholder 'CAT' is a single token already; use a new word, such as '<cat>'"),
            ("*", "placeholder '*' is a single token already; use a new word, such as '<*>'"),
            ("7", "placeholder '7' is a single token already; use a new word, such as '<7>'"),
            (
                "<|endoftext|>",
                "placeholder '<|endoftext|>' is a single token already; use a new word, such as '<<|endoftext|>>'",
            ),
        ],
    )
    def test_words(self, word, message):
        self.refused(Tokenizer(), word, 1, message)

    @pytest.mark.parametrize("word", ["cat", "*", "7", "<|endoftext|>"])
    def test_the_word_suggested_is_allowed(self, word):
        assert Tokenizer().add_placeholder(f"<{word}>", 1) == (49408,)

    @pytest.mark.parametrize(
        ("word", "number", "message"),
        [
            ("<t>", 1, "placeholder '<t>' is registered already, as '<t>' (case is ignored); rename one of them"),
            ("<T>", 2, "placeholder '<T>' is registered already, as '<t>' (case is ignored); rename one of them"),
            ("<one>", 1, "placeholder '<one>' is registered already, as '<One>' (case is ignored); rename one of them"),
            ("<one>", 2, "placeholder '<one>' is registered already, as '<One>' (case is ignored); rename one of them"),
            ("<t>_1", 1, "placeholder '<t>_1' already names a vector of '<t>'; rename one of them"),
            ("<T>_2", 2, "placeholder '<T>_2' already names a vector of '<t>'; rename one of them"),
            ("<u>", 3, "a vector of placeholder '<u>' would have the name of '<U>_2'; rename one of them"),
        ],
    )
    def test_taken_names(self, word, number, message):
        tokenizer = Tokenizer()
        tokenizer.add_placeholder("<One>", 1)
        tokenizer.add_placeholder("<t>", 3)
        tokenizer.add_placeholder("<U>_2", 1)
        self.refused(tokenizer, word, number, message)

    @pytest.mark.parametrize(("word", "number"), [("<t>_3", 1), ("<u>", 2), ("<t>_1_1", 2), ("<t", 4)])
    def test_names_that_only_look_taken(self, word, number):
        tokenizer = Tokenizer()
        tokenizer.add_placeholder("<t>", 3)
        tokenizer.add_placeholder("<u>_2", 1)
        assert tokenizer.add_placeholder(word, number) == tuple(range(49412, 49412 + number))

    @pytest.mark.parametrize("number", [0, -1])
    def test_too_few_vectors(self, number):
        self.refused(Tokenizer(), "<t>", number, f"placeholder '<t>' is given {number} vectors; give it at least 1")

    @pytest.mark.parametrize(("positions", "most"), [(77, 75), (8, 6)])
    def test_too_many_vectors(self, positions, most):
        message = f"placeholder '<t>' with {most + 1} vectors fits in no prompt; give it at most {most}"
        self.refused(Tokenizer(positions), "<t>", most + 1, message)

    @staticmethod
    def refused(tokenizer: Tokenizer, word: str, number: int, message: str) -> None:
        with pytest.raises(UserError) as error:
            tokenizer.add_placeholder(word, number)
        assert str(error.value) == message
        assert "\n" not in message


class TestPoolPositions:
    def test_the_rules_differ_for_placeholders_only(self):
        tokenizer = with_placeholders(t=2, u=1)
        prompts = ["a cat", "", "a <t> cat", "<u> <t> <u>", "cat " * 90, "a <|endoftext|> cat"]
        for padding in (0, END):
            ids = tokenizer(prompts, padding)
            for rule, expected in [("end_of_text", [3, 1, 5, 5, 76, 2]), ("argmax", [3, 1, 3, 1, 76, 2])]:
                found = pool_positions(ids, rule)
                assert found.dtype == np.int32
                assert found.tolist() == expected

    def test_unknown_rule(self):
        with pytest.raises(ValueError, match=r"^no pooling rule 'mean'$"):
            pool_positions(Tokenizer()(["a"], 0), "mean")

    def test_a_row_without_an_end(self):
        with pytest.raises(ValueError, match=r"^a row without the end token 49407$"):
            pool_positions(np.array([[START, END], [START, CAT]]), "end_of_text")
