"""The tokenizer compared with OpenAI's.

The reference is `clip/simple_tokenizer.py` of the package clip-anytorch, loaded alone: the package itself imports
torchvision.
"""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest

from gm.text import bpe
from gm.text.tokenizer import END, START, VOCAB_SIZE, Tokenizer

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
    """OpenAI's module; the tests fail where it is not installed."""
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


class TestAgainstOpenAI:
    def test_markers_and_size_of_the_vocabulary(self, openai):
        assert openai.encoder["<|startoftext|>"] == START == 49406
        assert openai.encoder["<|endoftext|>"] == END == 49407
        assert len(openai.encoder) == VOCAB_SIZE == 49408

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
            assert bpe.clean_text(text) == expected, ascii(text)

    def test_every_id_of_the_vocabulary(self, openai):
        """Every entry as a word of its own, so that every merge of the file occurs in some word."""
        tokenizer = Tokenizer()
        words = [openai.decode([number]).strip() for number in range(512, START)]
        assert tokenizer.encode(" ".join(words)) == openai.encode(" ".join(words))

    def test_placeholders_leave_other_text_alone(self, openai):
        tokenizer = Tokenizer()
        tokenizer.add_placeholder("<unused>", 3)
        for text in [*PLAIN, *AWKWARD, *random_texts(500)]:
            assert tokenizer.encode(text) == openai.encode(text), ascii(text)

    def test_table_padded_with_zero(self, openai):
        texts = [*PLAIN, *AWKWARD, *random_texts(500), *(" ".join(["cat"] * n) for n in range(73, 79))]
        table = Tokenizer()(texts, padding=0)
        assert table.dtype == np.int32
        np.testing.assert_array_equal(table, openai_tokenize(openai, texts))

    @pytest.mark.reference
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

    def test_table_of_another_context_length(self):
        table = Tokenizer(context_length=6)(["a cat", "a photo of a cat"], padding=9)
        assert table.tolist() == [[START, A, CAT, END, 9, 9], [START, A, PHOTO, OF, A, END]]
        assert Tokenizer(context_length=6)([], padding=9).shape == (0, 6)


class TestCaches:
    def test_the_vocabulary_file_is_read_once(self):
        bpe._merges.cache_clear()
        bpe._encode_word.cache_clear()
        Tokenizer().encode("a")
        Tokenizer().encode("another")
        assert bpe._merges.cache_info().misses == 1

    def test_words_are_remembered(self):
        bpe._encode_word.cache_clear()
        assert Tokenizer().encode("cat") == Tokenizer().encode("a CAT")[1:]
        assert bpe._encode_word.cache_info().hits == 1


def test_every_token_decodes_as_in_openai(openai):
    for number in range(START):
        name = openai.decoder[number]
        spelling = bytes(openai.byte_decoder[c] for c in name.removesuffix("</w>")).decode("utf-8", errors="replace")
        assert bpe.decode_token(number) == spelling + ("" if name.endswith("</w>") else "-")
    assert [bpe.decode_token(number) for number in (START, END)] == ["<|startoftext|>", "<|endoftext|>"]
