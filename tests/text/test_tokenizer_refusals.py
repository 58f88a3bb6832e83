"""Placeholder tokens that the tokenizer refuses, prompts that it truncates, and its messages."""

from __future__ import annotations

import pytest

from gm.errors import UserError
from gm.text.tokenizer import END, START, Tokenizer
from tests.text.placeholders import CAT, A, with_placeholders


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
        tokenizer = Tokenizer(context_length=8)
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
        ("placeholder_token", "message"),
        [
            ("", "the placeholder is empty; choose a string such as '<concept>'"),
            (" \t", "the placeholder is empty; choose a string such as '<concept>'"),
            (
                "\x00\x07",
                r"nothing is left of placeholder '\x00\x07' in a cleaned prompt; choose a string such as '<concept>'",
            ),
            ("my toy", "placeholder 'my toy' contains white space; write it as one word, such as 'my-toy'"),
            (" <t>", "placeholder ' <t>' contains white space; write it as one word, such as '<t>'"),
            ("<t>\n", r"placeholder '<t>\n' contains white space; write it as one word, such as '<t>'"),
            ("my&nbsp;toy", "placeholder 'my&nbsp;toy' contains white space; write it as one word, such as 'my-toy'"),
            (
                "<a\x07b>",
                r"placeholder '<a\x07b>' contains characters that cannot be printed; "
                "choose a string such as '<concept>'",
            ),
            (
                "\u202eyot",
                r"placeholder '\u202eyot' contains characters that cannot be printed; "
                "choose a string such as '<concept>'",
            ),
            (
                "<" * 10**6,
                f"placeholder '{'<' * 60}'… has 1000000 characters, at most 256 are possible; choose a string such as "
                "'<concept>'",
            ),
            ("cat", "placeholder 'cat' is a single token already; choose another, such as '<cat>'"),
            ("CAT", "placeholder 'CAT' is a single token already; choose another, such as '<cat>'"),
            ("*", "placeholder '*' is a single token already; choose another, such as '<*>'"),
            ("7", "placeholder '7' is a single token already; choose another, such as '<7>'"),
            (
                "<|endoftext|>",
                "placeholder '<|endoftext|>' is a single token already; choose another, such as '<<|endoftext|>>'",
            ),
        ],
    )
    def test_strings_that_cannot_be_placeholder_tokens(self, placeholder_token, message):
        self.refused(Tokenizer(), placeholder_token, 1, message)

    @pytest.mark.parametrize("placeholder_token", ["cat", "*", "7", "<|endoftext|>"])
    def test_the_suggested_string_is_allowed(self, placeholder_token):
        assert Tokenizer().add_placeholder(f"<{placeholder_token}>", 1) == (49408,)

    @pytest.mark.parametrize(
        ("placeholder_token", "num_vectors", "message"),
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
    def test_taken_names(self, placeholder_token, num_vectors, message):
        tokenizer = Tokenizer()
        tokenizer.add_placeholder("<One>", 1)
        tokenizer.add_placeholder("<t>", 3)
        tokenizer.add_placeholder("<U>_2", 1)
        self.refused(tokenizer, placeholder_token, num_vectors, message)

    @pytest.mark.parametrize(
        ("placeholder_token", "num_vectors"), [("<t>_3", 1), ("<u>", 2), ("<t>_1_1", 2), ("<t", 4)]
    )
    def test_names_that_only_look_taken(self, placeholder_token, num_vectors):
        tokenizer = Tokenizer()
        tokenizer.add_placeholder("<t>", 3)
        tokenizer.add_placeholder("<u>_2", 1)
        assert tokenizer.add_placeholder(placeholder_token, num_vectors) == tuple(range(49412, 49412 + num_vectors))

    @pytest.mark.parametrize("num_vectors", [0, -1])
    def test_too_few_vectors(self, num_vectors):
        self.refused(
            Tokenizer(), "<t>", num_vectors, f"placeholder '<t>' has {num_vectors} vectors; it must have at least 1"
        )

    @pytest.mark.parametrize(("context_length", "most"), [(77, 75), (8, 6)])
    def test_too_many_vectors(self, context_length, most):
        message = f"placeholder '<t>' with {most + 1} vectors fits in no prompt; give it at most {most}"
        self.refused(Tokenizer(context_length), "<t>", most + 1, message)

    @staticmethod
    def refused(tokenizer: Tokenizer, placeholder_token: str, num_vectors: int, message: str) -> None:
        with pytest.raises(UserError) as error:
            tokenizer.add_placeholder(placeholder_token, num_vectors)
        assert str(error.value) == message
        assert "\n" not in message
