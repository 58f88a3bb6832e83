"""gm/training/concept_data.py: several words at once, from their options to their files."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import pytest
from PIL import Image

from gm import config as configuration
from gm.config import Config
from gm.embeddings import io as embedding_io
from gm.errors import UserError
from gm.runtime import rng
from gm.runtime.backend import Backend
from gm.training import concept_data, setup, trainer
from gm.training.train_step import TrainState, TrainStep
from tests.project import Workshop, whole_runs

EAGER = Backend("CPU", graph=False, dtype=ms.float32)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders, `a` of two images and `b` of five, of which one has a caption."""
    place = tmp_path_factory.mktemp("words")
    for name, count in (("a", 2), ("b", 5)):
        (place / name).mkdir()
        for number in range(count):
            noise = rng.generator(number, name).integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(noise).save(place / name / f"{number}.png")
    (place / "b" / "3.txt").write_text("a {} with <aa>")
    return place


def config_of(workshop: Workshop, concepts: list[Any], **sections: dict[str, Any]) -> Config:
    return workshop.config(concept={"concepts": concepts, "initializer_token": "cat"}, **sections)


def two(folders: Path) -> list[dict[str, Any]]:
    return [
        {"placeholder_token": "<aa>", "data_path": str(folders / "a"), "num_vectors": 3},
        {"placeholder_token": "<bb>", "data_path": str(folders / "b"), "initializer_token": None},
    ]


BAD = {"placeholder_token": "<bad>", "negative": True, "num_vectors": 1}


def test_what_an_entry_leaves_out_is_as_in_the_config(workshop: Workshop, folders: Path) -> None:
    first, second, bad = concept_data.entries(config_of(workshop, [BAD, *two(folders)]))
    assert (first.num_vectors, first.initializer_token, first.repeats, first.negative) == (3, "cat", None, False)
    assert (second.num_vectors, second.initializer_token, second.learnable_property) == (2, None, "object")
    assert (bad.placeholder_token, bad.negative, bad.data_path) == ("<bad>", True, "")
    (alone,) = concept_data.entries(workshop.config())
    assert (alone.placeholder_token, alone.data_path) == ("<toy>", str(workshop.folder / "images"))


def test_words_are_read_from_a_command_line_and_a_file(workshop: Workshop, tmp_path: Path) -> None:
    listed = tmp_path / "words.yaml"
    listed.write_text("- {placeholder_token: <aa>, data_path: a}\n- placeholder_token: <bb>\n  num_vectors: 5\n")
    found = concept_data.entries(config_of(workshop, [str(listed), "{placeholder_token: <cc>, repeats: 2}"]))
    assert [e.placeholder_token for e in found] == ["<aa>", "<bb>", "<cc>"]
    assert [e.num_vectors for e in found] == [2, 5, 2]
    assert [e.repeats for e in found] == [None, None, 2]


@pytest.mark.parametrize(
    ("concepts", "message"),
    [
        (["words.yaml"], "words.yaml is not a file; give a YAML file with a list"),
        (["{placeholder_token: <a>"], "is not YAML"),
        ([["<a>"]], r"--concepts, word 1 is \['<a>'\]; write \{placeholder_token"),
        ([{"placeholder": "<a>"}], "word 1: unknown option placeholder; did you mean 'placeholder_token'"),
        ([{}, {"num_vectors": 0}], "word 2: num_vectors is 0; it must be at least 1"),
        ([{}, {"num_vectors": "many"}], "word 2: num_vectors: Value 'many'"),
        ([{"repeats": 0}], "word 1: repeats is 0"),
        ([{}, {}], "'<toy>' is registered already"),
        ([BAD], "a negative word alone"),
        ([{}, BAD, BAD], "two negative words; there can be one"),
        ([{}, {**BAD, "data_path": "a"}], "word 2: a negative word is learned from the others' images"),
        ([{}, {"placeholder_token": "<b>", "data_path": "nowhere"}], "--data_path nowhere does not exist"),
        ([{}, {"placeholder_token": "<b>", "data_path": ""}], "--data_path is empty"),
    ],
)
def test_mistakes_are_named(workshop: Workshop, concepts: list[Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        setup.prepare(config_of(workshop, concepts))


def test_a_file_of_words_must_hold_a_list(workshop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "words.yaml").write_text("placeholder_token: <a>\n")
    with pytest.raises(UserError, match="must hold a list of mappings"):
        concept_data.entries(config_of(workshop, [str(tmp_path / "words.yaml")]))


def test_one_entry_is_as_the_flags(workshop: Workshop, folders: Path) -> None:
    entry = two(folders)[0]
    made = setup.prepare(config_of(workshop, [entry]))
    concept = {**entry, "initializer_token": "cat"}
    data = {"data_path": concept.pop("data_path")}
    assert made.config == workshop.config(concept=concept, data=data)


def test_files_are_called_after_words() -> None:
    entries = [concept_data.Entry(word) for word in ("<cat-toy>", "<Cat-Toy!>", "*:*", "../猫", "a.b")]
    assert concept_data.names(entries) == ["cat-toy", "Cat-Toy-2", "word3", "猫", "a.b"]


def test_every_image_is_shown_with_its_word_and_all_words_about_as_often(workshop: Workshop, folders: Path) -> None:
    made = setup.prepare(config_of(workshop, [*two(folders), BAD]))
    assert [concept.rows for concept in made.concepts] == [slice(0, 3), slice(3, 5), slice(5, 6)]
    assert concept_data.repeats(made.concepts) == [2, 1, 0]  # 4 and 5 images in an epoch
    _, loader = trainer.prepare(workshop.model, made, EAGER)
    shown: Counter[int] = Counter()
    for step in range(54):
        batch = loader.batch(step)
        ids = batch.ids_2.asnumpy()[0]
        word = 1 if 49411 in ids else 0  # a caption of the second holds the first, too
        own = {49408, 49409, 49410} if word == 0 else {49411, 49412}
        assert own <= {*ids.tolist()}
        assert 49413 not in ids  # the negative word is in no prompt
        shown[word] += 1
    assert shown == {0: 24, 1: 30}
    asked = [
        dataclasses.replace(entry, repeats=k)
        for entry, k in zip(concept_data.entries(made.config), (3, 2, None), strict=True)
    ]
    with_repeats = [dataclasses.replace(concept, entry=e) for concept, e in zip(made.concepts, asked, strict=True)]
    assert concept_data.repeats(with_repeats) == [3, 2, 0]


def test_a_caption_may_hold_other_words(workshop: Workshop, folders: Path) -> None:
    made = setup.prepare(config_of(workshop, two(folders)))
    assert made.concepts[1].captions == (None, None, None, "a <bb> with <aa>", None)
    assert not any(made.concepts[0].captions)


def test_a_step_changes_the_words_that_it_shows(workshop: Workshop, folders: Path) -> None:
    config = config_of(workshop, two(folders), data={"captions": False})
    learned, loader = trainer.prepare(workshop.model, setup.prepare(config), EAGER)
    step = TrainStep(workshop.model, learned, half=False)
    for number in range(4):
        before = [total.asnumpy().copy() for total in learned.sums]
        batch = loader.batch(number)
        step(*batch)
        first = 49408 in batch.ids_1.asnumpy()
        for total, earlier in zip(learned.sums, before, strict=True):
            moved = (total.asnumpy() != earlier).any(axis=1)
            assert moved.tolist() == [first] * 3 + [not first] * 2


def test_random_rows_of_two_words_differ(workshop: Workshop, folders: Path) -> None:
    concepts = [{**entry, "initializer_token": None, "num_vectors": 2} for entry in two(folders)]
    rows = trainer.prepare(workshop.model, setup.prepare(config_of(workshop, concepts)), EAGER)[0].arrays()
    for each in rows:
        assert np.abs(each[:2] - each[2:]).min() > 1e-5


@pytest.fixture(scope="module")
def trained(workshop: Workshop, folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("together")
    training = {"total_step": 4, "save_path": str(place), "infer_during_train": True, "num_validation_samples": 6}
    config = config_of(
        workshop, [*two(folders), BAD], training={**training, "validation_prompts": ["a {}", "<aa> <bb>"]}
    )
    paths = whole_runs(config)
    assert [path.name for path in paths] == [f"smallest_{name}_4_ti.ckpt" for name in ("aa", "bb", "bad")]
    return place


def test_each_word_has_a_file_of_its_own(workshop: Workshop, folders: Path, trained: Path) -> None:
    found = {name: embedding_io.load(trained / f"smallest_{name}_4_ti.ckpt") for name in ("aa", "bb", "bad")}
    assert [(c.placeholder_token, c.num_vectors) for c in found.values()] == [("<aa>", 3), ("<bb>", 2), ("<bad>", 1)]
    start = trainer.prepare(workshop.model, setup.prepare(config_of(workshop, [*two(folders), BAD])), EAGER)[0].arrays()
    for concept, rows in zip(found.values(), (slice(0, 3), slice(3, 5), slice(5, 6)), strict=True):
        for now, before in ((concept.vectors["clip_l"], start[0][rows]), (concept.vectors["clip_g"], start[1][rows])):
            assert np.abs(now - before).min() > 1e-3
            assert np.abs(now - before).max() < 0.1  # four steps of 1e-2: it started there
        recipe = concept.metadata["recipe"]["concept"]["concepts"]
        assert [entry["placeholder_token"] for entry in recipe] == ["<aa>", "<bb>", "<bad>"]


def test_the_log_and_the_report_tell_the_words_apart(trained: Path) -> None:
    records = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    named = [(r["word"], r["encoder"], len(r["norms"])) for r in records if "nearest" in r]
    each = [("<aa>", 3), ("<bb>", 2), ("<bad>", 1)]
    assert named == [(word, encoder, rows) for encoder in ("clip_l", "clip_g") for word, rows in each]
    measured = [r for r in records if "held_out" in r][-1]
    assert set(measured["held_out_words"]) == {"<aa>", "<bb>"}
    report = (trained / "report.html").read_text()
    assert "&lt;aa&gt;, &lt;bb&gt;, &lt;bad&gt; on smallest" in report
    assert all(f"&lt;{word}&gt; in clip_g" in report for word in ("aa", "bb", "bad"))


def test_previews_show_each_word_away_from_the_negative_one(workshop: Workshop, folders: Path, trained: Path) -> None:
    config = configuration.load(trained / "config.yaml")
    previews = setup.prepare(config).previews
    assert [p.prompt for p in previews] == ["a <aa>", "a <bb>", "<aa> <bb>"]
    assert {p.negative_prompt for p in previews} == {"<bad>"}
    with Image.open(trained / "previews" / "step_4.png") as sheet:
        assert sheet.size == (16, 3 * 16)
    plain = setup.prepare(config_of(workshop, two(folders))).previews
    assert [(p.prompt, p.negative_prompt) for p in plain] == [("a photo of <aa>", ""), ("a photo of <bb>", "")]


def test_the_written_config_learns_the_same(trained: Path, tmp_path: Path) -> None:
    config = configuration.load(trained / "config.yaml", {"training": {"save_path": str(tmp_path)}})
    for again in whole_runs(config):
        ours, theirs = embedding_io.load(again), embedding_io.load(trained / again.name)
        assert np.array_equal(ours.vectors["clip_l"], theirs.vectors["clip_l"])
        assert np.array_equal(ours.vectors["clip_g"], theirs.vectors["clip_g"])


def test_it_goes_on_where_it_stopped(workshop: Workshop, folders: Path, trained: Path, tmp_path: Path) -> None:
    options = {"total_step": 4, "num_validation_samples": 6, "checkpointing_steps": 2, "save_path": str(tmp_path)}
    concepts = [*two(folders), BAD]
    whole_runs(config_of(workshop, concepts, training=options))
    resume = {**options, "resume": str(tmp_path / "state_2.ckpt")}
    for again in whole_runs(config_of(workshop, concepts, training=resume)):
        assert np.array_equal(
            embedding_io.load(again).vectors["clip_g"], embedding_io.load(trained / again.name).vectors["clip_g"]
        )
    for changed, reason in (
        ({"num_vectors": 4}, r"concept.concepts.2.num_vectors was 2 → 4; the rows are there already"),
        ({"placeholder_token": "<dd>"}, r"concept.concepts.2.placeholder_token was .* it is the word being learned"),
    ):
        other = [concepts[0], {**concepts[1], **changed}, BAD]
        with pytest.raises(UserError, match=reason):
            setup.prepare(config_of(workshop, other, training=resume))
    with pytest.raises(UserError, match=r"concept\.concepts"):
        setup.prepare(config_of(workshop, concepts[:2], training=resume))
    named = setup.prepare(config_of(workshop, [{**concepts[0], "repeats": 7}, *concepts[1:]], training=resume)).changed
    assert named == {"concept.concepts.1.repeats": "None → 7"}


def test_a_negative_word_changes_what_is_learned(workshop: Workshop, folders: Path) -> None:
    """The rows of a word move another way beside a negative one, and the further the stronger the guidance."""
    moved = []
    for concepts, guidance in ((two(folders), 3.0), ([*two(folders), BAD], 1.0), ([*two(folders), BAD], 3.0)):
        config = config_of(workshop, concepts, loss={"negative_guidance": guidance})
        made = setup.prepare(config)
        learned, loader = trainer.prepare(workshop.model, made, EAGER)
        start = TrainState(learned.arrays(), half=False)
        TrainStep(workshop.model, start, False, config.loss, loader.negative)(*loader.batch(0))
        moved.append(start.sums[1].asnumpy()[:5])
    plain, one, three = moved
    np.testing.assert_allclose(one, plain, rtol=1e-3, atol=1e-7)  # guidance 1 is no guidance
    assert np.linalg.norm(three - plain) > 0.5 * np.linalg.norm(plain)
