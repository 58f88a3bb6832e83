"""Whole evaluations on the smallest model with small random encoders."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gm.config import Config
from gm.errors import UserError
from gm.evaluation import generation, job, run
from gm.evaluation.scores import Encoders
from gm.sampling.pipeline import Pipeline
from tests.evaluation import encoder_folders
from tests.evaluation.encoder_folders import CLIP_B32, DINO_S16
from tests.evaluation.test_job import config, save
from tests.project import Call, Workshop
from tests.sampling.generation import PYNATIVE, toy

ROOT = Path(__file__).resolve().parents[2]
METRICS = ("CLIP-I, training", "CLIP-I, held-out", "DINO, training", "DINO, held-out", "CLIP-T")


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return options of an evaluation with two prompts in each group, two seeds and small encoders."""
    folder = tmp_path_factory.mktemp("evaluation")
    (folder / "plain.txt").write_text("a photo of a {}\na {}\n")
    (folder / "edits.txt").write_text("a {} on the beach\na red {} => a red thing\n")
    Image.new("RGB", (30, 40), "red").save(folder / "held_out.png")
    return {
        "clip": str(encoder_folders.write(folder / "clip", CLIP_B32)),
        "dino": str(encoder_folders.write(folder / "dino", DINO_S16)),
        "reconstruction_prompts": str(folder / "plain.txt"),
        "editability_prompts": str(folder / "edits.txt"),
        "held_out_images": str(folder / "held_out.png"),
        "class_word": "cat",
        "num_seeds": 2,
    }


@pytest.fixture(scope="module")
def encoders(options: dict[str, Any]) -> Encoders:
    from gm.config import EvaluationConfig

    loaded = Config(evaluation=EvaluationConfig(clip=options["clip"], dino=options["dino"]))
    return run.load_encoders(job.EvaluationJob(loaded, [], [], {}, {}, "object", ""))


Evaluate = Callable[..., dict[str, Any]]


@pytest.fixture
def evaluate(workshop: Workshop, options: dict[str, Any], encoders: Encoders, tmp_path: Path) -> Evaluate:
    """Return the function that evaluates files and returns the JSON; `loads` counts how often the model was used."""
    pipeline = Pipeline(workshop.model, PYNATIVE, "end_of_text")

    def evaluated(*files: str, sampling: dict[str, Any] | None = None, **changed: Any) -> dict[str, Any]:
        sampling = {"sample_step": 1, "save_path": str(tmp_path / "out"), "batch_size": 4, **(sampling or {})}
        prepared = job.prepare(config(workshop, *files, sampling=sampling, **{**options, **changed}))
        loads: list[None] = []

        def load() -> Pipeline:
            loads.append(None)
            return pipeline

        events = list(run.run_job(prepared, generation.plan(prepared), encoders, PYNATIVE, load))
        paths = [event for event in events if isinstance(event, Path)]
        result: dict[str, Any] = json.loads(paths[-3].read_text())
        return {**result, "loads": len(loads), "paths": paths}

    return evaluated


def test_two_embeddings_are_compared_on_the_same_noise(
    evaluate: Evaluate, encoders: Encoders, workshop: Workshop, tmp_path: Path
) -> None:
    files = [save(tmp_path / name / "toy.ckpt", toy(k)) for k, name in enumerate(("a", "b"))]
    result = evaluate(files[0], compare=files[1:])
    assert result["loads"] == 1
    assert [each["name"] for each in result["embeddings"]] == ["a_toy", "b_toy"]
    assert [path.name for path in result["paths"][-3:]] == [f"evaluation_00000.{s}" for s in ("json", "md", "png")]
    assert [(i["prompt"], i["text"], i["seed"]) for i in result["embeddings"][0]["images"][3:6]] == [
        ("a <toy> cat", "a cat", 1043),
        ("a <toy> cat on the beach", "a cat on the beach", 2042),
        ("a <toy> cat on the beach", "a cat on the beach", 2043),
    ]
    _check_scores(result, encoders, workshop, tmp_path / "out")
    a, b = (each["images"] for each in result["embeddings"])
    for metric in METRICS:
        differences = [after[metric] - before[metric] for before, after in zip(a, b, strict=True)]
        paired = result["differences"][0]["scores"]
        assert paired["reconstruction"][metric]["mean"] == pytest.approx(np.mean(differences[:4]), abs=1e-12)
        assert paired["editability"][metric]["mean"] == pytest.approx(np.mean(differences[4:]), abs=1e-12)
        assert paired["editability"][metric]["low"] < paired["editability"][metric]["high"]


def _check_scores(result: dict[str, Any], encoders: Encoders, workshop: Workshop, folder: Path) -> None:
    """Restate the scores of the first embedding: cosines of single pairs, averaged in the end."""
    assert encoders.clip is not None
    assert encoders.dino is not None
    real = [Image.open(path).convert("RGB") for path in sorted((workshop.folder / "images").glob("*.png"))]
    embedding = result["embeddings"][0]
    scored = embedding["images"]
    images = [Image.open(folder / each["file"]) for each in scored]
    for metric, encoder in (("CLIP-I, training", encoders.clip), ("DINO, training", encoders.dino)):
        ours = [encoder.image_features([image], PYNATIVE)[0] for image in images]
        theirs = [encoder.image_features([image], PYNATIVE)[0] for image in real]
        pairs = [[float(g @ r) for r in theirs] for g in ours]
        assert [each[metric] for each in scored] == pytest.approx([np.mean(row) for row in pairs], abs=1e-5)
        assert embedding["scores"]["reconstruction"][metric]["mean"] == pytest.approx(np.mean(pairs[:4]), abs=1e-5)
        assert embedding["scores"]["editability"][metric]["mean"] == pytest.approx(np.mean(pairs[4:]), abs=1e-5)
        between = [float(theirs[i] @ theirs[j]) for i in range(3) for j in range(3) if i != j]
        assert result["real_scores"][metric] == pytest.approx(np.mean(between), abs=1e-5)
    texts = ["a photo of a cat", "a cat", "a cat on the beach", "a red thing"]
    of_texts = np.repeat(np.concatenate([encoders.clip.text_features([t], PYNATIVE) for t in texts]), 2, axis=0)
    cosines = (np.concatenate([encoders.clip.image_features([i], PYNATIVE) for i in images]) * of_texts).sum(1)
    assert [each["CLIP-T"] for each in scored] == pytest.approx(list(cosines), abs=1e-5)


def test_images_that_are_there_are_used_again(
    evaluate: Evaluate, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "gm")
    file = save(tmp_path / "toy.ckpt")
    first = evaluate(file)
    again = evaluate(file, sampling={"batch_size": 3})
    assert (first["loads"], again["loads"]) == (1, 0)
    assert again["embeddings"] == first["embeddings"]
    assert "8 of 8 images are in" in caplog.text
    assert [path.name for path in again["paths"]] == [f"evaluation_00001.{suffix}" for suffix in ("json", "md", "png")]
    more = evaluate(file, num_seeds=3)
    assert more["loads"] == 1
    assert sum(path.parent.name.startswith("toy_") for path in more["paths"]) == 4  # one more of each prompt
    with pytest.raises(UserError, match=r"was generated with other options \(sample_step\); give another --save_path"):
        evaluate(file, sampling={"sample_step": 2})


def test_script_with_one_seed_and_without_held_out_images(
    call: Call, options: dict[str, Any], workshop: Workshop, tmp_path: Path
) -> None:
    given = {**options, "num_seeds": 1, "sample_step": 1, "save_path": tmp_path / "out"}
    del given["held_out_images"], given["dino"]
    flags = [text for name, value in given.items() for text in (f"--{name}", value)]
    files = ["--config", workshop.yaml, "--textual_inversion_weight", save(tmp_path / "toy.ckpt")]
    images = ["--training_images", workshop.folder / "images", "--dino", ""]
    code, said, error = call(ROOT / "tools" / "evaluate.py", *files, *map(str, flags), *images)
    assert code == 0, error
    page = (tmp_path / "out" / "evaluation_00000.md").read_text()
    assert page in said
    assert "no intervals, which need several seeds" in page
    assert "no image was held out" in page
    assert "±" not in page
    result = json.loads((tmp_path / "out" / "evaluation_00000.json").read_text())
    scores = result["embeddings"][0]["scores"]["editability"]
    assert list(scores) == ["CLIP-I, training", "CLIP-T"]
    assert scores["CLIP-T"]["low"] is None


def test_page_has_a_table_for_each_group_and_marks_differences(evaluate: Evaluate, tmp_path: Path) -> None:
    files = [save(tmp_path / f"{name}.ckpt", toy(k)) for k, name in enumerate("ab")]
    result = evaluate(*files)
    page = result["paths"][-2].read_text()
    assert page.count("| | CLIP-I, training | CLIP-I, held-out | DINO, training | DINO, held-out | CLIP-T |") == 4
    (row,) = [line for line in page.split("## Editability\n")[1].splitlines() if line.startswith("| a |")]
    assert row.count(" ± ") == 5
    mean = result["embeddings"][0]["scores"]["editability"]["CLIP-I, training"]["mean"]
    assert row.startswith(f"| a | {mean:.3f} ± ")
    assert "| real images | " in page
    difference = result["differences"][0]["scores"]["editability"]
    (row,) = [line for line in page.split("## Editability: paired")[1].splitlines() if line.startswith("| b − a |")]
    marked = [cell.endswith("\\*") for cell in (part.strip() for part in row.split("|")[2:-1])]
    assert marked == [not each["low"] <= 0 <= each["high"] for each in difference.values()]


def test_contact_sheet_shows_real_images_and_all_prompts(evaluate: Evaluate, tmp_path: Path) -> None:
    result = evaluate(save(tmp_path / "toy.ckpt"), num_seeds=1)
    sheet = np.asarray(Image.open(result["paths"][-1]))
    assert sheet.shape == (6 * (18 + 166) + 6, 3 * 166 + 6, 3)  # three training images side by side
    generated = np.asarray(Image.open(result["paths"][0]).resize((160, 160), Image.Resampling.LANCZOS))
    assert np.array_equal(sheet[2 * 184 + 18 : 3 * 184 - 6, 6:166], generated)
    assert (sheet[184 + 18 + 80, 6 + 60] == (255, 0, 0)).all()  # the held-out image
