"""The rules of placeholders, of truncation and of pooling."""

from __future__ import annotations

import numpy as np
import pytest

from gm.errors import UserError
from gm.text.tokenizer import END, START, VOCABULARY, Tokenizer, pool_positions

A, PHOTO, OF, CAT = 320, 1125, 539, 2368


def with_placeholders(**num_vectors: int) -> Tokenizer:
    tokenizer = Tokenizer()
    for name, number in num_vectors.items():
        tokenizer.add_placeholder(f"<{name}>", number)
    return tokenizer


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


class TestSpans:
    def test_words_stand_where_they_were_typed(self):
        tokenizer = with_placeholders(t=2)
        tokenizer.add_placeholder("MyToy", 1)
        text = "a <T>,  MYTOY mytoys <t>_1 <t>_2\n<t>"
        found = [text[first:behind] for first, behind in tokenizer.spans(text)]
        assert found == ["<T>", "MYTOY", "<t>_1", "<t>", "<t>"]

    def test_words_are_found_as_registered_and_as_cleaned(self):
        tokenizer = Tokenizer()
        tokenizer.add_placeholder("<ﬁt>", 1)
        assert tokenizer.spans("<ﬁt><FIT> <fat>") == [(0, 4), (4, 9)]

    def test_without_placeholders_there_are_none(self):
        assert Tokenizer().spans("a <t> cat") == []


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
