"""Checked options of an evaluation: what is evaluated, with which prompts and real images."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gm.config import Config
from gm.embeddings import io as embedding_io
from gm.embeddings.embedding import Embedding
from gm.errors import UserError
from gm.evaluation import generation, job
from gm.evaluation.job import EvaluationJob
from tests.project import Workshop
from tests.sampling.generation import toy


def save(path: Path, embedding: Embedding | None = None, **concept: Any) -> str:
    """Write an embedding whose file records the options `concept` of its training; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made = dataclasses.replace(embedding or toy(), metadata={"recipe": {"concept": concept}})
    embedding_io.save(made, path)
    return str(path)


@pytest.fixture
def file(tmp_path: Path) -> str:
    return save(tmp_path / "toy.safetensors", learnable_property="object", initializer_token="cat")


def config(workshop: Workshop, *files: str, sampling: dict[str, Any] | None = None, **evaluation: Any) -> Config:
    images = str(workshop.folder / "images")
    return workshop.config(
        sampling={"textual_inversion_weight": list(files), **(sampling or {})},
        evaluation={"training_images": images, **evaluation},
    )


def prompts_of(prepared: EvaluationJob) -> list[str]:
    return [each.prompt for each in prepared.subjects[0].prompts]


def test_type_and_class_word_are_those_of_the_file(
    workshop: Workshop, file: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "gm")
    prepared = job.prepare(config(workshop, file))
    assert (prepared.prompt_set, prepared.class_word) == ("object", "cat")
    assert "a <toy> cat floating on top of water" in prompts_of(prepared)
    assert prepared.subjects[0].prompts[4].text == "a cat in the jungle"
    assert "prompts for the type object; --prompt_set chooses others" in caplog.text
    assert "class word cat, which its file records; --class_word chooses another" in caplog.text
    assert "scores against the training images reward copies of them" in caplog.text


def test_options_override_what_the_file_records(workshop: Workshop, file: str) -> None:
    prepared = job.prepare(config(workshop, file, prompt_set="live", class_word="stuffed animal"))
    assert "a <toy> stuffed animal wearing a santa hat" in prompts_of(prepared)
    without = job.prepare(config(workshop, file, class_word_in_prompts=False)).subjects[0].prompts[4]
    assert (without.prompt, without.text) == ("a <toy> in the jungle", "a cat in the jungle")
    assert "a <toy> in the jungle" in prompts_of(job.prepare(config(workshop, file, class_word="")))


def test_class_word_of_training_comes_before_the_initializer_token(workshop: Workshop, tmp_path: Path) -> None:
    file = save(tmp_path / "toy.safetensors", initializer_token="cat", class_word="toy")
    assert job.prepare(config(workshop, file)).class_word == "toy"


def test_embeddings_are_adjusted_as_in_sampling(workshop: Workshop, file: str) -> None:
    adjusted = job.prepare(config(workshop, file, sampling={"embedding_adjust": "0.5,0.3"}))
    (planned,) = generation.plan(adjusted)
    ((adjustment,),) = [planned.embeddings.adjustments]
    assert (adjustment.alpha, adjustment.rho) == (0.5, 0.3)
    assert planned.images[0].parameters["embedding_adjust"] == "0.5,0.3"
    (plain,) = generation.plan(job.prepare(config(workshop, file)))
    assert plain.embeddings.adjustments == ()


def test_styles_have_prompts_of_their_own(workshop: Workshop, tmp_path: Path) -> None:
    file = save(tmp_path / "style.safetensors", learnable_property="style", initializer_token="art")
    prepared = job.prepare(config(workshop, file))
    assert prepared.subjects[0].prompts[4].prompt == "a fox in a forest in the style of <toy>"
    assert prepared.subjects[0].prompts[4].text == "a fox in a forest"


def test_a_concept_of_several_is_found_by_its_token(workshop: Workshop, tmp_path: Path) -> None:
    several = [
        {"placeholder_token": "<other>", "learnable_property": "style"},
        {"placeholder_token": "<toy>", "learnable_property": "face", "initializer_token": "dog"},
    ]
    file = save(tmp_path / "toy.safetensors", concepts=several, learnable_property="object")
    prepared = job.prepare(config(workshop, file))
    assert (prepared.prompt_set, prepared.class_word) == ("live", "dog")


def test_training_images_are_those_that_the_file_records(workshop: Workshop, tmp_path: Path) -> None:
    folder = str(workshop.folder / "images")
    file = save(tmp_path / "toy.safetensors", data_path=folder)
    given = workshop.config(sampling={"textual_inversion_weight": [file]}, concept={"data_path": ""})
    assert [Path(each).name for each in job.prepare(given).real_files["training"]] == ["0.png", "1.png", "2.png"]
    silent = save(tmp_path / "silent.safetensors")
    given = workshop.config(sampling={"textual_inversion_weight": [silent]}, concept={"data_path": ""})
    with pytest.raises(UserError, match="<toy> does not record its training images; give their folder with --training"):
        job.prepare(given)


def test_embeddings_of_the_same_name_are_told_apart_by_their_folders(workshop: Workshop, tmp_path: Path) -> None:
    files = [save(tmp_path / name / "SD_3_ti.ckpt", toy(k)) for k, name in enumerate(("adam", "prodigy"))]
    prepared = job.prepare(config(workshop, files[0], compare=files[1:]))
    assert [subject.name for subject in prepared.subjects] == ["adam_SD_3_ti", "prodigy_SD_3_ti"]


def test_embedding_of_the_negative_prompt_is_not_evaluated(workshop: Workshop, file: str, tmp_path: Path) -> None:
    negative = save(tmp_path / "neg.safetensors", toy(3, "<neg>"))
    prepared = job.prepare(config(workshop, file, negative, sampling={"negative_prompt": "ugly, <neg>"}))
    assert [subject.name for subject in prepared.subjects] == ["toy"]
    (planned,) = generation.plan(prepared)
    assert set(planned.embeddings.tokenizer.placeholders) == {"<toy>", "<neg>"}


def test_seeds_are_those_of_prompts_and_shared_by_embeddings(workshop: Workshop, file: str, tmp_path: Path) -> None:
    other = save(tmp_path / "other" / "toy.safetensors", toy(1))
    prepared = job.prepare(config(workshop, file, compare=[other], num_seeds=2, sampling={"seed": 5}))
    first, second = generation.plan(prepared)
    seeds = [image.request.seed for image in first.images]
    assert seeds[:5] == [5, 6, 1005, 1006, 2005]
    assert seeds == [image.request.seed for image in second.images]
    assert len(set(seeds)) == len(seeds) == 2 * (4 + 25)
    names = [image.path.name for image in first.images]
    assert (names[0], names[-1]) == ("reconstruction_01_1.png", "editability_25_2.png")
    assert first.images[0].path.parent != second.images[0].path.parent


def test_options_of_other_tasks_in_a_yaml_file_are_not_used(workshop: Workshop, file: str) -> None:
    given = config(workshop, file, sampling={"task": "img2img", "img": ["nowhere.png"], "preview_interval": 1})
    assert job.prepare(given).config.sampling.task == "txt2img"


def test_a_held_out_image_that_was_trained_on_is_refused(workshop: Workshop, file: str, tmp_path: Path) -> None:
    held_out = tmp_path / "held_out"
    held_out.mkdir()
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(held_out / "new.png")
    prepared = job.prepare(config(workshop, file, held_out_images=str(held_out)))
    assert {kind: len(images) for kind, images in prepared.real.items()} == {"training": 3, "held-out": 1}
    assert len(job.prepare(config(workshop, file, held_out_images=str(held_out / "new.png"))).real["held-out"]) == 1
    shutil.copy(workshop.folder / "images" / "1.png", held_out / "old.png")
    with pytest.raises(UserError, match=r"old\.png is the training image .*1\.png; give images of its own"):
        job.prepare(config(workshop, file, held_out_images=str(held_out)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip": "", "dino": ""}, "--clip and --dino are both empty"),
        ({"training_images": "nowhere"}, "--training_images nowhere does not exist; give a folder with images"),
        ({"held_out_images": "nowhere"}, "--held_out_images nowhere does not exist"),
        ({"editability_prompts": "nowhere.txt"}, "cannot read --editability_prompts nowhere.txt"),
        ({"compare": ["@"]}, "is given twice; give it once"),
    ],
)
def test_mistakes_are_named(workshop: Workshop, file: str, options: dict[str, Any], message: str) -> None:
    given = {name: [file] if value == ["@"] else value for name, value in options.items()}
    with pytest.raises(UserError, match=message):
        job.prepare(config(workshop, file, **given))


def test_without_an_embedding_there_is_nothing_to_evaluate(workshop: Workshop, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no embedding to evaluate: give one or more files"):
        job.prepare(config(workshop))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty has no image"):
        job.prepare(config(workshop, save(tmp_path / "toy.ckpt"), training_images=str(tmp_path / "empty")))


def test_embeddings_of_other_types_are_warned_of(
    workshop: Workshop, file: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = save(tmp_path / "b.ckpt", toy(1, "<b>"), learnable_property="style", initializer_token="dog")
    job.prepare(config(workshop, file, compare=[other]))
    assert "<b> is of another type; --prompt_set says which prompts are meant" in caplog.text
    assert "<b> has another class word in its file; the class word is 'cat' for all" in caplog.text
