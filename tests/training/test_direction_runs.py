"""Whole runs with --optimizer direction and class words: their files, log and prompts, and that they resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gm.embeddings import io as embedding_io
from gm.errors import UserError
from gm.training import setup
from tests.project import Workshop, whole_runs

TRAINING = {
    "optimizer": "direction",
    "learning_rate": 0.04,
    "learning_rate_clip_g": 0.02,
    "lr_warmup_steps": 1,
    "total_step": 6,
    "gradient_accumulation_steps": 2,
    "checkpointing_steps": 3,
    "num_validation_samples": 2,
}


def concepts(workshop: Workshop) -> list[dict[str, Any]]:
    images = str(workshop.folder / "images")
    return [
        {"placeholder_token": "<aa>", "data_path": images, "initializer_token": "cat", "class_word": "toy cat"},
        {"placeholder_token": "<bb>", "data_path": images},
        {"placeholder_token": "<no>", "negative": True, "initializer_token": "dog"},
    ]


@pytest.fixture(scope="module")
def trained(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("direction")
    whole_runs(workshop.config(training={**TRAINING, "save_path": str(folder)}, concepts=concepts(workshop)))
    return folder


def test_the_log_shows_constant_norms_and_growing_angles(trained: Path) -> None:
    records = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    vectors = [record for record in records if "angles" in record]
    assert {(r["placeholder_token"], r["encoder"]) for r in vectors} == {
        (token, encoder) for token in ("<aa>", "<bb>", "<no>") for encoder in ("clip_l", "clip_g")
    }
    for record in vectors:
        np.testing.assert_allclose(record["relative_norms"], 1.0, rtol=1e-5)
        np.testing.assert_allclose(record["relative_norms_before"], 1.0, rtol=1e-5)
        # Three updates, of which the first has half the rate.
        most = 2.5 * np.degrees(np.arctan({"clip_l": 0.04, "clip_g": 0.02}[record["encoder"]]))
        assert all(0.5 < angle <= 1.001 * most for angle in record["angles"])


def test_a_run_with_several_and_negative_concepts_resumes_bit_for_bit(
    workshop: Workshop, trained: Path, tmp_path: Path
) -> None:
    """From a state between two updates."""
    options = {**TRAINING, "save_path": str(tmp_path), "resume": str(trained / "state_3.ckpt")}
    for path in whole_runs(workshop.config(training=options, concepts=concepts(workshop))):
        ours, whole = embedding_io.load(path), embedding_io.load(trained / path.name)
        for encoder, vectors in whole.vectors.items():
            assert np.array_equal(ours.vectors[encoder], vectors)


def test_files_keep_the_class_word(trained: Path) -> None:
    found = {name: embedding_io.load(trained / f"smallest_{name}_6_ti.safetensors") for name in ("aa", "bb", "no")}
    assert found["aa"].metadata["class_word"] == "toy cat"
    assert embedding_io.load(trained / "smallest_aa_6_ti.ckpt").metadata["class_word"] == "toy cat"
    assert "class_word" not in found["bb"].metadata
    assert "class_word" not in found["no"].metadata


def test_a_class_word_is_in_templates_and_sample_prompts_of_its_concept(workshop: Workshop) -> None:
    training = {"validation_prompts": ["a {} in the snow", "a {} toy cat", "a <aa> alone"]}
    plain = setup.prepare(workshop.config(concepts=concepts(workshop)))
    first, second, _ = plain.concepts
    assert first.prompts[0] == "a photo of <aa> toy cat"
    assert second.prompts[0] == "a photo of <bb>"
    assert [request.prompt for request in plain.sample_requests] == ["a photo of <aa> toy cat", "a photo of <bb>"]
    prompts = setup.prepare(workshop.config(concepts=concepts(workshop), training=training)).sample_requests
    assert [request.prompt for request in prompts] == [
        "a <aa> toy cat in the snow",
        "a <bb> in the snow",
        "a <aa> toy cat",
        "a <bb> toy cat",
        "a <aa> alone",
    ]


@pytest.mark.parametrize(
    ("class_word", "message"),
    [
        ("", "--class_word '' of <toy> is not a word or phrase; give one, such as toy, or leave it out"),
        (" toy", "--class_word ' toy' of <toy> is not a word or phrase"),
        ("a {}", "--class_word 'a {}' of <toy> is not a word or phrase"),
        ("<TOY>", "--class_word '<TOY>' of <toy> holds a placeholder token; give a word that the model knows"),
    ],
)
def test_a_class_word_that_is_none_is_refused(workshop: Workshop, class_word: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        setup.prepare(workshop.config(concept={"class_word": class_word}))
    assert str(caught.value).startswith(message)


def test_an_option_without_a_meaning_is_refused_before_anything_is_loaded(workshop: Workshop) -> None:
    with pytest.raises(UserError, match=r"--weight_decay 0.1 has no meaning with --optimizer direction"):
        setup.prepare(workshop.config(training={"optimizer": "direction", "weight_decay": 0.1}))
