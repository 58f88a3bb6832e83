"""Placeholder tokens and pooling positions."""

from __future__ import annotations

import numpy as np
import pytest

from gm.errors import UserError
from gm.text.tokenizer import END, START, VOCAB_SIZE, Tokenizer, pool_positions
from tests.text.placeholders import CAT, OF, PHOTO, A, with_placeholders


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
        assert max(Tokenizer().encode("<t>")) < VOCAB_SIZE

    def test_as_many_vectors_as_fit(self):
        tokenizer = Tokenizer()
        ids = tokenizer.add_placeholder("<t>", 75)
        assert tokenizer(["<t>"], padding=0)[0].tolist() == [START, *ids, END]
        assert Tokenizer(context_length=8).add_placeholder("<t>", 6) == tuple(range(49408, 49414))


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
    def test_adjacent_letters_and_digits_hide_a_placeholder_token(self, text):
        tokenizer = Tokenizer()
        tokenizer.add_placeholder("mytoy", 1)
        assert tokenizer.encode(text) == Tokenizer().encode(text)

    @pytest.mark.parametrize("before", ["", "a ", "(", "-", "_", "'"])
    @pytest.mark.parametrize("after", ["", " cat", ")", "-cat", "_", "'s", ",", "."])
    def test_other_neighbors_do_not(self, before, after):
        tokenizer = Tokenizer()
        tokenizer.add_placeholder("mytoy", 1)
        expected = [*Tokenizer().encode(before), 49408, *Tokenizer().encode(after)]
        assert tokenizer.encode(f"{before}mytoy{after}") == expected

    def test_only_an_alphanumeric_edge_depends_on_its_neighbor(self):
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

    def test_text_in_between_is_not_an_expansion_by_hand(self):
        assert with_placeholders(t=2).encode("<t> a <t>_1") == [49408, 49409, A, 49409]
        assert with_placeholders(t=2).encode("<t>, <t>_1") == [49408, 49409, 267, 49409]
        assert with_placeholders(t=3).encode("<t> <t>_2") == [49408, 49409, 49410, 49410]

    def test_a_vector_of_another_placeholder_token_is_no_continuation(self):
        assert with_placeholders(t=2, u=2).encode("<t> <u>_1") == [49408, 49409, 49411]

    def test_a_placeholder_token_with_one_vector_has_no_vector_names(self):
        assert with_placeholders(t=1).encode("<t>_1") == [49408, *Tokenizer().encode("_1")]
        tokenizer = with_placeholders(t=1)
        tokenizer.add_placeholder("<t>_1", 2)
        assert tokenizer.encode("<t> <t>_1") == [49408, 49409, 49410]

    def test_vector_numbers_are_whole(self):
        tokenizer = with_placeholders(t=12)
        assert tokenizer.encode("<t>_11") == [49419]
        assert tokenizer.encode("<t>_1") == [49409]
        assert tokenizer.encode("<t>_12") == [*range(49408, 49420), *Tokenizer().encode("_12")]


class TestPlaceholderSpans:
    def test_spans_are_those_of_the_uncleaned_prompt(self):
        tokenizer = with_placeholders(t=2)
        tokenizer.add_placeholder("MyToy", 1)
        text = "a <T>,  MYTOY mytoys <t>_1 <t>_2\n<t>"
        found = [text[first:behind] for first, behind in tokenizer.placeholder_spans(text)]
        assert found == ["<T>", "MYTOY", "<t>_1", "<t>", "<t>"]

    def test_placeholder_tokens_match_as_registered_and_as_cleaned(self):
        tokenizer = Tokenizer()
        tokenizer.add_placeholder("<ﬁt>", 1)
        assert tokenizer.placeholder_spans("<ﬁt><FIT> <fat>") == [(0, 4), (4, 9)]

    def test_without_placeholders_there_are_none(self):
        assert Tokenizer().placeholder_spans("a <t> cat") == []


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
        with pytest.raises(ValueError, match=r"^unknown pooling rule 'mean'$"):
            pool_positions(Tokenizer()(["a"], 0), "mean")

    def test_a_prompt_without_an_end_token(self):
        with pytest.raises(ValueError, match=r"^a prompt without the end token 49407$"):
            pool_positions(np.array([[START, END], [START, CAT]]), "end_of_text")
