"""Several concepts in one run, from their options to their files."""

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
from gm.config import ConceptConfig, Config
from gm.embeddings import io as embedding_io
from gm.errors import UserError
from gm.runtime import rng
from gm.runtime.backend import Backend
from gm.training import concept_data, setup, trainer
from gm.training.optimizer import create_train_state
from gm.training.train_step import TrainStep
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
    return workshop.config(concepts=concepts, concept={"initializer_token": "cat"}, **sections)


def two(folders: Path) -> list[dict[str, Any]]:
    return [
        {"placeholder_token": "<aa>", "data_path": str(folders / "a"), "num_vectors": 3},
        {"placeholder_token": "<bb>", "data_path": str(folders / "b"), "initializer_token": None},
    ]


BAD = {"placeholder_token": "<bad>", "negative": True, "num_vectors": 1}


def test_options_left_out_are_those_of_the_concept_section(workshop: Workshop, folders: Path) -> None:
    first, second, bad = config_of(workshop, [BAD, *two(folders)]).concepts
    assert (first.num_vectors, first.initializer_token, first.repeats, first.negative) == (3, "cat", None, False)
    assert (second.num_vectors, second.initializer_token, second.learnable_property) == (2, None, "object")
    assert (bad.placeholder_token, bad.negative, bad.data_path) == ("<bad>", True, "")
    (alone,) = concept_data.concept_configs(workshop.config())
    assert (alone.placeholder_token, alone.data_path) == ("<toy>", str(workshop.folder / "images"))


def test_concepts_are_read_from_text_and_files(workshop: Workshop, tmp_path: Path) -> None:
    listed = tmp_path / "words.yaml"
    listed.write_text("- {placeholder_token: <aa>, data_path: a}\n- placeholder_token: <bb>\n  num_vectors: 5\n")
    found = config_of(workshop, [str(listed), "{placeholder_token: <cc>, repeats: 2}"]).concepts
    assert [e.placeholder_token for e in found] == ["<aa>", "<bb>", "<cc>"]
    assert [e.num_vectors for e in found] == [2, 5, 2]
    assert [e.repeats for e in found] == [None, None, 2]


@pytest.mark.parametrize(
    ("concepts", "message"),
    [
        (["words.yaml"], "words.yaml is not a file; give a YAML file with a list"),
        (["{placeholder_token: <a>"], "is not YAML"),
        ([["<a>"]], r"--concepts, concept 1 is \['<a>'\]; write \{placeholder_token"),
        ([{"placeholder": "<a>"}], "concept 1: unknown option placeholder; did you mean 'placeholder_token'"),
        ([{}, {"num_vectors": 0}], "concept 2: num_vectors is 0; it must be at least 1"),
        ([{}, {"num_vectors": "many"}], "concept 2: num_vectors: Value 'many'"),
        ([{"repeats": 0}], "concept 1: repeats is 0"),
        ([{}, {}], "'<toy>' is registered already"),
        ([BAD], "only a negative concept"),
        ([{}, BAD, BAD], "two negative concepts; at most one"),
        (
            [{}, {**BAD, "data_path": "a"}],
            "concept 2: a negative concept is trained on the images of the other concepts",
        ),
        ([{}, {"placeholder_token": "<b>", "data_path": "nowhere"}], "--data_path nowhere does not exist"),
        ([{}, {"placeholder_token": "<b>", "data_path": ""}], "--data_path is empty"),
    ],
)
def test_mistakes_are_named(workshop: Workshop, concepts: list[Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        setup.prepare(config_of(workshop, concepts))


def test_file_of_concepts_must_hold_a_list(workshop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "words.yaml").write_text("placeholder_token: <a>\n")
    with pytest.raises(UserError, match="must hold a list of mappings"):
        config_of(workshop, [str(tmp_path / "words.yaml")])


def test_single_entry_is_as_the_flags(workshop: Workshop, folders: Path) -> None:
    entry = two(folders)[0]
    config = config_of(workshop, [entry])
    assert config == workshop.config(concept={**entry, "initializer_token": "cat"})
    assert setup.prepare(config).config == config


def test_file_stems_are_unique_and_safe() -> None:
    concepts = [ConceptConfig(placeholder_token=token) for token in ("<cat-toy>", "<Cat-Toy!>", "*:*", "../猫", "a.b")]
    assert concept_data.file_stems(concepts) == ["cat-toy", "Cat-Toy-2", "word3", "猫", "a.b"]


def test_images_are_used_with_their_concept_and_concepts_about_equally_often(workshop: Workshop, folders: Path) -> None:
    training_setup = setup.prepare(config_of(workshop, [*two(folders), BAD]))
    assert [concept.vector_slice for concept in training_setup.concepts] == [slice(0, 3), slice(3, 5), slice(5, 6)]
    assert concept_data.repeats(training_setup.concepts) == [2, 1, 0]  # 4 and 5 images in an epoch
    loader = trainer.prepare(workshop.model, training_setup, EAGER).batches
    shown: Counter[int] = Counter()
    for step in range(54):
        batch = loader.batch(step)
        ids = batch.ids[1].asnumpy()[0]
        word = 1 if 49411 in ids else 0  # a caption of the second holds the first, too
        own = {49408, 49409, 49410} if word == 0 else {49411, 49412}
        assert own <= {*ids.tolist()}
        assert 49413 not in ids  # the negative word is in no prompt
        shown[word] += 1
    assert shown == {0: 24, 1: 30}
    configs = [
        dataclasses.replace(concept, repeats=k)
        for concept, k in zip(training_setup.config.concepts, (3, 2, None), strict=True)
    ]
    with_repeats = [
        dataclasses.replace(concept, config=c) for concept, c in zip(training_setup.concepts, configs, strict=True)
    ]
    assert concept_data.repeats(with_repeats) == [3, 2, 0]


def test_caption_may_hold_other_placeholder_tokens(workshop: Workshop, folders: Path) -> None:
    training_setup = setup.prepare(config_of(workshop, two(folders)))
    assert training_setup.concepts[1].captions == ((), (), (), ("a <bb> with <aa>",), ())
    assert not any(training_setup.concepts[0].captions)


def test_step_has_gradients_only_for_the_concepts_in_its_batch(workshop: Workshop, folders: Path) -> None:
    config = config_of(workshop, two(folders), data={"captions": False})
    run = trainer.prepare(workshop.model, setup.prepare(config), EAGER)
    loader, state = run.batches, run.state
    step = TrainStep(workshop.model, state)
    for number in range(4):
        before = [total.asnumpy().copy() for total in state.gradient_sums]
        batch = loader.batch(number)
        step(*batch.inputs)
        first = 49408 in batch.ids[0].asnumpy()
        for total, earlier in zip(state.gradient_sums, before, strict=True):
            moved = (total.asnumpy() != earlier).any(axis=1)
            assert moved.tolist() == [first] * 3 + [not first] * 2


def test_random_vectors_of_two_concepts_differ(workshop: Workshop, folders: Path) -> None:
    concepts = [{**entry, "initializer_token": None, "num_vectors": 2} for entry in two(folders)]
    run = trainer.prepare(workshop.model, setup.prepare(config_of(workshop, concepts)), EAGER)
    for each in run.state.vector_arrays().values():
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


def test_each_concept_has_its_own_file(workshop: Workshop, folders: Path, trained: Path) -> None:
    found = {name: embedding_io.load(trained / f"smallest_{name}_4_ti.ckpt") for name in ("aa", "bb", "bad")}
    assert [(c.placeholder_token, c.num_vectors) for c in found.values()] == [("<aa>", 3), ("<bb>", 2), ("<bad>", 1)]
    run = trainer.prepare(workshop.model, setup.prepare(config_of(workshop, [*two(folders), BAD])), EAGER)
    start = run.state.vector_arrays()
    for concept, rows in zip(found.values(), (slice(0, 3), slice(3, 5), slice(5, 6)), strict=True):
        for encoder in ("clip_l", "clip_g"):
            now, before = concept.vectors[encoder], start[encoder][rows]
            assert np.abs(now - before).min() > 1e-3
            assert np.abs(now - before).max() < 0.1  # four steps of 1e-2: it started there
        recipe = concept.metadata["recipe"]["concept"]["concepts"]
        assert [entry["placeholder_token"] for entry in recipe] == ["<aa>", "<bb>", "<bad>"]


def test_log_and_report_name_the_concepts(trained: Path) -> None:
    records = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    named = [(r["placeholder_token"], r["encoder"], len(r["norms"])) for r in records if "norms" in r]
    each = [("<aa>", 3), ("<bb>", 2), ("<bad>", 1)]
    assert named == [(word, encoder, rows) for encoder in ("clip_l", "clip_g") for word, rows in each]
    measured = [r for r in records if "validation_loss" in r][-1]
    assert set(measured["validation_loss_change_by_concept"]) == {"<aa>", "<bb>"}
    report = (trained / "report.html").read_text()
    assert "&lt;aa&gt;, &lt;bb&gt;, &lt;bad&gt; on smallest" in report
    assert all(f"&lt;{word}&gt; in clip_g" in report for word in ("aa", "bb", "bad"))


def test_sample_images_of_each_concept_with_the_negative_prompt(
    workshop: Workshop, folders: Path, trained: Path
) -> None:
    config = configuration.load(trained / "config.yaml")
    previews = setup.prepare(config).sample_requests
    assert [p.prompt for p in previews] == ["a <aa>", "a <bb>", "<aa> <bb>"]
    assert {p.negative_prompt for p in previews} == {"<bad>"}
    with Image.open(trained / "previews" / "step_4.png") as sheet:
        assert sheet.size == (16, 3 * 16)
    plain = setup.prepare(config_of(workshop, two(folders))).sample_requests
    assert [(p.prompt, p.negative_prompt) for p in plain] == [("a photo of <aa>", ""), ("a photo of <bb>", "")]


def test_saved_config_trains_the_same(trained: Path, tmp_path: Path) -> None:
    config = configuration.load(trained / "config.yaml", {"training": {"save_path": str(tmp_path)}})
    for again in whole_runs(config):
        ours, theirs = embedding_io.load(again), embedding_io.load(trained / again.name)
        assert np.array_equal(ours.vectors["clip_l"], theirs.vectors["clip_l"])
        assert np.array_equal(ours.vectors["clip_g"], theirs.vectors["clip_g"])


def test_several_concepts_are_resumed(workshop: Workshop, folders: Path, trained: Path, tmp_path: Path) -> None:
    options = {"total_step": 4, "num_validation_samples": 6, "checkpointing_steps": 2, "save_path": str(tmp_path)}
    concepts = [*two(folders), BAD]
    whole_runs(config_of(workshop, concepts, training=options))
    resume = {**options, "resume": str(tmp_path / "state_2.ckpt")}
    for again in whole_runs(config_of(workshop, concepts, training=resume)):
        assert np.array_equal(
            embedding_io.load(again).vectors["clip_g"], embedding_io.load(trained / again.name).vectors["clip_g"]
        )
    for changed, reason in (
        ({"num_vectors": 4}, r"concepts.2.num_vectors was 2 → 4; the vectors exist already"),
        ({"placeholder_token": "<dd>"}, r"concepts.2.placeholder_token was .* the token is what is being trained"),
    ):
        other = [concepts[0], {**concepts[1], **changed}, BAD]
        with pytest.raises(UserError, match=reason):
            setup.prepare(config_of(workshop, other, training=resume))
    with pytest.raises(UserError, match=r"concepts\.3"):
        setup.prepare(config_of(workshop, concepts[:2], training=resume))
    named = setup.prepare(
        config_of(workshop, [{**concepts[0], "repeats": 7}, *concepts[1:]], training=resume)
    ).changed_options
    assert named == {"concepts.1.repeats": "None → 7"}


def test_negative_concept_changes_the_gradient(workshop: Workshop, folders: Path) -> None:
    """The gradient with a negative concept differs, and the more the higher the guidance scale."""
    moved = []
    for concepts, guidance in ((two(folders), 3.0), ([*two(folders), BAD], 1.0), ([*two(folders), BAD], 3.0)):
        config = config_of(workshop, concepts, loss={"negative_guidance": guidance})
        training_setup = setup.prepare(config)
        run = trainer.prepare(workshop.model, training_setup, EAGER)
        state = create_train_state(run.state.vector_arrays())
        TrainStep(workshop.model, state, False, config.loss, run.batches.negative)(*run.batches.batch(0).inputs)
        moved.append(state.gradient_sums[1].asnumpy()[:5])
    plain, one, three = moved
    np.testing.assert_allclose(one, plain, rtol=1e-3, atol=1e-7)  # guidance 1 is no guidance
    assert np.linalg.norm(three - plain) > 0.5 * np.linalg.norm(plain)
