"""gm/embeddings/notes.py: the rule that a word was learned under, and details, through files that may not hold them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from gm.embeddings import interchange
from gm.embeddings import io as embedding_io
from gm.embeddings.formats import FORMATS, EncoderVectors
from gm.embeddings.interchange import EmbeddingFile
from gm.errors import UserError


def made(vectors: int = 1, both: bool = True) -> EncoderVectors:
    one, two = (np.full((vectors, width), 0.5, np.float32) for width in (768, 1280))
    return one, two if both else None


@pytest.mark.parametrize("format_", FORMATS)
def test_a_format_without_notes_means_its_own_rule_and_goes_over_with_it(tmp_path: Path, format_: str) -> None:
    """What is not said of a pickle by its program is said by whatever is made of it."""
    rows = made(both=format_ not in ("a1111", "kohya"))
    learned = EmbeddingFile(format_, {"<cat>": rows})
    target = "diffusers" if format_ != "diffusers" else "kohya" if rows[1] is None else "clip"
    (path, *_) = interchange.write(learned, tmp_path / "learned_embeds.safetensors", target)
    (word,) = interchange.read(path).words
    assert interchange.read(path).own(word) == {"pooling": FORMATS[format_].pooling}


def test_a_file_of_tensors_alone_that_cannot_keep_the_rule_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for rule, warnings in (("argmax", 0), ("end_of_text", 2)):
        learned = EmbeddingFile("mindspore", {"<cat>": made()}, {"pooling": rule})
        paths = interchange.write(learned, tmp_path / "learned_embeds.bin", "diffusers", overwrite=True)
        assert len(caplog.messages) == warnings
        assert all(list(torch.load(path, weights_only=True)) == ["<cat>"] for path in paths)  # what diffusers needs
    assert "learned_embeds.bin cannot say under which pooling rule" in caplog.messages[0]
    assert embedding_io.load(tmp_path).pooling == "argmax"


def test_what_programs_look_for_in_pickles_stays_as_it_is(tmp_path: Path) -> None:
    notes = {"pooling": "argmax", "details": '{"step": 7}'}
    interchange.write(EmbeddingFile("a1111", {"<cat>": made(2, both=False)}, notes), tmp_path / "a.pt", "a1111")
    found = torch.load(tmp_path / "a.pt", weights_only=True)
    assert (list(found["string_to_param"]), found["name"], found["details"]) == (["*"], "<cat>", '{"step": 7}')
    interchange.write(EmbeddingFile("clip", {"<cat>": made()}, notes), tmp_path / "b.pt", "roettger")
    found = torch.load(tmp_path / "b.pt", weights_only=True)
    assert [found[name].shape[0] for name in ("emb", "emb2")] == [768, 1280]
    assert embedding_io.load(tmp_path / "b.pt").metadata == {"step": 7}


@pytest.mark.parametrize(
    ("notes", "message"),
    [
        ({"of_words": "no JSON"}, "holds a note, of_words, that is no JSON"),
        ({"of_words": "[1]"}, "holds a note, of_words, that is no table"),
        ({"of_words": "[" * 100_000}, "holds a note, of_words, that is no JSON"),
        ({"of_words": '{"<a>": 3}'}, "holds a note, of_words, that tells nothing of <a>"),
        ({"of_words": '{"<a>": {"pooling": ["argmax"]}}'}, "holds a note, pooling, that is no text"),
        ({"details": "[1]"}, "holds a note, details, that is no table"),
        ({"details": "[" * 100_000}, "holds a note, details, that is no JSON"),
    ],
)
def test_notes_that_make_no_sense_are_refused(tmp_path: Path, notes: dict[str, str], message: str) -> None:
    for second, rows in zip(("", "_2"), made(), strict=True):
        save_file({"<a>": rows}, tmp_path / f"learned_embeds{second}.safetensors", notes)
    with pytest.raises(UserError, match=rf"{message}.*: the file is damaged"):
        embedding_io.load(tmp_path)
