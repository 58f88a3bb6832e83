"""gm/embeddings/interchange.py and tools/convert_weights/embedding.py: from any program's file to any other's."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from gm.checkpoints import torch_format
from gm.config import POOLING_RULES
from gm.embeddings import interchange
from gm.embeddings import io as embedding_io
from gm.embeddings.embedding import Embedding
from gm.embeddings.formats import FORMATS, EncoderVectors, Format
from gm.embeddings.interchange import EmbeddingFile
from gm.errors import UserError
from tests.project import Call, Workshop

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "convert_weights" / "embedding.py"
ENDINGS = {
    "mindspore": ".ckpt",
    "a1111": ".pt",
    "kohya": ".safetensors",
    "clip": ".safetensors",
    "cog": ".pti",
    "roettger": ".pt",
    "diffusers": ".safetensors",
}
BOTH = ("mindspore", "clip", "cog", "roettger", "diffusers")
CLIP_L = ("a1111", "kohya", "diffusers")


def made(vectors: int = 1, both: bool = True) -> EncoderVectors:
    random = np.random.default_rng(vectors)
    one, two = (random.standard_normal((vectors, width)).astype(np.float32) for width in (768, 1280))
    return one, two if both else None


def other_rule(format_: Format) -> str:
    """Return a rule that readers do not take for granted."""
    return next(rule for rule in POOLING_RULES if rule != format_.pooling)


def same(found: EncoderVectors, rows: EncoderVectors) -> bool:
    return all(a is b is None or (a is not None and np.array_equal(a, b)) for a, b in zip(found, rows, strict=True))


@pytest.mark.parametrize(
    ("first", "second"), [*((a, b) for a in BOTH for b in BOTH), *((a, b) for a in CLIP_L for b in CLIP_L)]
)
def test_from_every_format_to_every_other_and_back(tmp_path: Path, first: str, second: str) -> None:
    """Nothing of the rows is lost, nor the word, the rule that it was learned under, and details."""
    rows, way = made(both=(first, second) not in [(a, b) for a in CLIP_L for b in CLIP_L]), (first, second, first)
    says = {"pooling": other_rule(FORMATS[second]), "details": '{"step": 7}'}
    learned = EmbeddingFile(
        first, {"<cat>": rows}, {"step": 499, "sd_checkpoint": "c6bb", "sd_checkpoint_name": None} | says
    )
    for number, format_ in enumerate(way):
        paths = interchange.write(learned, tmp_path / f"{number}{ENDINGS[format_]}", format_)
        assert all(path.exists() for path in paths)
        if len(paths) == 2:  # diffusers' two are known for each other by the names that it gives them
            for path, name in zip(paths, ("learned_embeds", "learned_embeds_2"), strict=True):
                path.rename(tmp_path / f"{name}.safetensors")
            paths[0] = tmp_path / "learned_embeds.safetensors"
        found = interchange.read(paths[0])
        assert found.format == format_
        (word,) = found.words
        assert "<cat>" in (word, found.notes.get("placeholder_token"))
        assert found.own(word) == says
        assert same(found.words[word], rows)
        if format_ == "a1111":
            assert (found.notes["step"], found.notes["sd_checkpoint"]) == (499, "c6bb")
        learned = EmbeddingFile(format_, {"<cat>": found.words[word]}, {**learned.notes, **found.notes})


@pytest.mark.parametrize(
    ("format_", "words", "message"),
    [
        ("a1111", {"<a>": made()}, "holds rows of CLIP-L alone"),
        ("kohya", {"<a>": made()}, "holds rows of CLIP-L alone"),
        ("clip", {"<a>": made(both=False)}, "needs the rows of both encoders; those of OpenCLIP bigG"),
        ("roettger", {"<a>": made(3)}, "holds one vector, and there are 3"),
        ("cog", {"<a>": made(), "<b>": made()}, "holds one word a file, and there are 2"),
        ("diffusers", {None: made()}, "say their word; give --placeholder_token"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(
    tmp_path: Path, format_: str, words: dict[str | None, EncoderVectors], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        interchange.write(EmbeddingFile("clip", words), tmp_path / f"a{ENDINGS[format_]}", format_)
    assert list(tmp_path.iterdir()) == []


def test_endings_that_cannot_hold_a_format(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"must end in \.ckpt"):
        interchange.write(EmbeddingFile("clip", {None: made()}), tmp_path / "a.txt", "clip")
    with pytest.raises(UserError, match=r"holds tensors alone, and the format more; write it as \.pt"):
        interchange.write(EmbeddingFile("clip", {None: made(both=False)}), tmp_path / "a.safetensors", "a1111")


def test_pytorch_reads_what_is_written_without_trusting_it(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    tree = {
        "rows": random.standard_normal((3, 5)).astype(np.float32),
        "turned": random.standard_normal((4, 6)).astype(np.float16).T,
        "ids": {"*": np.array([265])},
        "name": "Würfel",
        "step": -70_000,
        "rate": 0.5,
        "flag": True,
        "nothing": None,
        "empty": {},
    }
    torch_format.write(tmp_path / "a.pt", tree)
    found = torch.load(tmp_path / "a.pt", weights_only=True)
    assert np.array_equal(found["rows"].numpy(), tree["rows"])
    assert np.array_equal(found["turned"].numpy(), tree["turned"])
    assert found["ids"]["*"].tolist() == [265]
    plain = ("name", "step", "rate", "flag", "nothing", "empty")
    assert {name: found[name] for name in plain} == {name: tree[name] for name in plain}
    ours = torch_format.read(tmp_path / "a.pt")
    assert np.array_equal(ours["turned"].read(), tree["turned"])
    before = (tmp_path / "a.pt").read_bytes()
    torch_format.write(tmp_path / "a.pt", tree)
    assert (tmp_path / "a.pt").read_bytes() == before


@pytest.fixture
def embedding(call: Call) -> Call:
    """Return the function that calls the script."""
    return functools.partial(call, SCRIPT)


@pytest.fixture
def learned(tmp_path: Path) -> Path:
    rows = [np.random.default_rng(k).standard_normal((2, width)).astype(np.float32) for k, width in ((1, 16), (2, 24))]
    embedding_io.save(
        Embedding("<toy>", dict(zip(("clip_l", "clip_g"), rows, strict=True)), "end_of_text", {"step": 7}),
        tmp_path / "smallest_7_ti.ckpt",
    )
    return tmp_path / "smallest_7_ti.ckpt"


def test_the_script_converts_and_keeps_what_the_file_says(embedding: Call, learned: Path, tmp_path: Path) -> None:
    target = tmp_path / "toy.safetensors"
    assert embedding("convert", "--source", learned, "--target", target) == (0, f"wrote {target}\n", "")
    assert sorted(load_file(target)) == ["clip_g", "clip_l"]
    again = tmp_path / "again_ti.ckpt"
    assert embedding("convert", "--source", target, "--target", again)[0] == 0
    before, after = embedding_io.load(learned), embedding_io.load(again)
    assert (after.placeholder_token, after.pooling, after.metadata) == ("<toy>", "end_of_text", {"step": 7})
    assert np.array_equal(before.vectors["clip_g"], after.vectors["clip_g"])
    pair = tmp_path / "learned_embeds.safetensors"
    code, out, _ = embedding("convert", "--source", learned, "--target", pair, "--format", "diffusers")
    assert (code, out.count("wrote")) == (0, 2)
    assert list(load_file(tmp_path / "learned_embeds_2.safetensors")) == ["<toy>"]
    back = tmp_path / "back_ti.ckpt"
    assert embedding("convert", "--source", pair, "--target", back, "--placeholder_token", "<other>")[0] == 0
    assert embedding_io.load(back).placeholder_token == "<other>"


def test_the_script_overwrites_nothing_unasked(embedding: Call, learned: Path, tmp_path: Path) -> None:
    for target, other in (("mine.safetensors", ()), ("learned_embeds.safetensors", ("--format", "diffusers"))):
        path = tmp_path / target
        mine = path if not other else tmp_path / "learned_embeds_2.safetensors"
        mine.write_text("mine")
        code, _, error = embedding("convert", "--source", learned, "--target", path, *other)
        assert code == 2
        assert error == f"error: --target {mine} already exists; --overwrite replaces it\n"
        assert mine.read_text() == "mine"
        assert embedding("convert", "--source", learned, "--target", path, *other, "--overwrite")[0] == 0


def test_the_script_shows_what_is_in_a_file(embedding: Call, learned: Path, workshop: Workshop) -> None:
    weight = workshop.folder / "weights.ckpt"
    code, out, _ = embedding("inspect", "--source", learned, "--weight", weight)
    assert code == 0
    found = json.loads(out)
    assert (found["format"], found["pooling"]) == ("mindspore", "end_of_text")
    assert found["notes"]["details"] == {"step": 7}
    for name, width, rows in zip(("clip_l", "clip_g"), (16, 24), _rows(learned), strict=True):
        shown = found["words"]["<toy>"][name]
        assert (shown["vectors"], shown["width"]) == (2, width)
        np.testing.assert_allclose(shown["norms"], np.linalg.norm(rows, axis=1), atol=1e-4)
        assert [len(row) for row in shown["nearest"]] == [5, 5]
    assert "nearest" not in embedding("inspect", "--source", learned)[1]


def another(folder: Path, word: str = "<dog>", vectors: int = 2, pooling: str = "end_of_text") -> Path:
    rows = [np.random.default_rng(9 + k).standard_normal((vectors, k)).astype(np.float32) for k in (16, 24)]
    embedding_io.save(
        Embedding(word, dict(zip(("clip_l", "clip_g"), rows, strict=True)), pooling), folder / "dog_ti.ckpt"
    )
    return folder / "dog_ti.ckpt"


def test_the_script_merges_words_into_one_file(embedding: Call, learned: Path, tmp_path: Path) -> None:
    other, target = another(tmp_path, pooling="argmax"), tmp_path / "learned_embeds.safetensors"
    assert embedding("merge", "--source", learned, other, "--target", target)[0] == 0
    second, first = embedding_io.load_all(target)  # in the order of the alphabet, as the container has them
    assert (first.placeholder_token, second.placeholder_token) == ("<toy>", "<dog>")
    for found, path, rule, details in (
        (first, learned, "end_of_text", {"step": 7}),
        (second, other, "argmax", {}),
    ):
        assert (found.pooling, found.metadata) == (rule, details)
        for ours, theirs in zip((found.vectors["clip_l"], found.vectors["clip_g"]), _rows(path), strict=True):
            assert np.array_equal(ours, theirs)
    shown = json.loads(embedding("inspect", "--source", target)[1])
    assert shown["pooling"] == {"<toy>": "end_of_text", "<dog>": "argmax"}
    twin = another(tmp_path, "<TOY>", vectors=3)
    arguments = ("merge", "--source", learned, twin, "--target", tmp_path / "both.safetensors")
    code, _, error = embedding(*arguments)
    assert code == 2
    assert "two files hold the word <toy>; call one otherwise" in error
    assert embedding(*arguments, "--placeholder_token", "<toy>", "<other>")[0] == 0


@pytest.mark.parametrize(
    ("weights", "expected"), [(None, (0.5, 0.5)), (("0.8", "0.2"), (0.8, 0.2)), (("1", "-1"), (1, -1))]
)
def test_the_script_mixes_words(
    embedding: Call, learned: Path, tmp_path: Path, weights: tuple[str, str] | None, expected: tuple[float, float]
) -> None:
    other, target = another(tmp_path), tmp_path / "mixed_ti.ckpt"
    given = ("--weights", *weights) if weights else ()
    words = ("--placeholder_token", "<toy-dog>")
    assert embedding("mix", "--source", learned, other, "--target", target, *given, *words)[0] == 0
    found = embedding_io.load(target)
    assert found.placeholder_token == "<toy-dog>"
    for ours, one, two in zip(
        (found.vectors["clip_l"], found.vectors["clip_g"]), _rows(learned), _rows(other), strict=True
    ):
        np.testing.assert_allclose(ours, expected[0] * one + expected[1] * two, rtol=1e-5, atol=1e-6)
    parts = [(part["word"], part["weight"]) for part in found.metadata["mixed"]]
    assert parts == [("<toy>", expected[0]), ("<dog>", expected[1])]
    assert found.metadata["mixed"][0]["details"] == {"step": 7}


def test_one_word_is_scaled(embedding: Call, learned: Path, tmp_path: Path) -> None:
    target = tmp_path / "more_ti.ckpt"
    assert embedding("mix", "--source", learned, "--weights", "1.2", "--target", target)[0] == 0
    np.testing.assert_allclose(embedding_io.load(target).vectors["clip_l"], 1.2 * _rows(learned)[0], rtol=1e-6)


@pytest.mark.parametrize(
    ("other", "arguments", "message"),
    [
        ({"vectors": 3}, (), "<toy> and <dog> have 2 vectors, 16 and 24 wide and 3 vectors"),
        ({"pooling": "argmax"}, (), "trained with the pooling rules end_of_text and argmax"),
        ({}, ("--weights", "1"), "there are 2 words and 1 weights"),
        ({}, ("--placeholder_token", "<a>", "<b>"), "or for mix one"),
    ],
)
def test_words_that_cannot_be_mixed(
    embedding: Call, learned: Path, tmp_path: Path, other: dict, arguments: tuple[str, ...], message: str
) -> None:
    target = tmp_path / "mixed_ti.ckpt"
    code, _, error = embedding("mix", "--source", learned, another(tmp_path, **other), "--target", target, *arguments)
    assert code == 2
    assert message in error
    assert not target.exists()


def _rows(path: Path) -> tuple[np.ndarray, np.ndarray]:
    concept = embedding_io.load(path)
    return concept.vectors["clip_l"], concept.vectors["clip_g"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["convert"], "--source is missing"),
        (["convert", "--source", "@learned"], "--target is missing"),
        (["convert", "--source", "@learned", "--target", "@a.txt"], "must end in .ckpt"),
        (["convert", "--source", "@learned", "--target", "@a.pt"], "holds rows of CLIP-L alone"),
        (["convert", "--source", "@learned", "--target", "@a.pti", "--format", "pti"], "invalid choice: 'pti'"),
        (["inspect", "--source", "@nowhere"], "there is not a file"),
        (["inspect", "--source", "@learned", "--weight", "@learned2"], "there is not a file"),
        (["inspect", "--source", "@learned", "--words", "3"], "unknown argument --words"),
        (["inspect", "--source", "@learned", "@learned"], "inspect takes one --source; merge and mix take several"),
        (["convert", "--source", "@learned", "--placeholder_token", "<a>", "<b>"], "as many --placeholder_token as"),
    ],
)
def test_the_script_names_what_is_wrong(embedding: Call, learned: Path, arguments: list[str], message: str) -> None:
    given = [a.replace("@learned", str(learned)).replace("@", f"{learned.parent}/") for a in arguments]
    code, _, error = embedding(*given)
    assert code == 2
    assert message in error
    assert error.count("\n") == 1


def test_every_format_has_an_ending_here() -> None:
    assert set(ENDINGS) == set(FORMATS)
