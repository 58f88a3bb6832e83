"""Generation through the worker: one loaded model, progress without arrays, and literal prompts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from demo.app.server import generate_jobs
from gm import api
from gm.config import Config
from gm.errors import UserError
from gm.sampling import image_files, run
from gm.sampling.pipeline import SamplingProgress
from tests.project import Workshop


def sampling_config(workshop: Workshop, folder: Path, **sampling: Any) -> Config:
    return workshop.config(sampling={"save_path": str(folder), "prompt": "a cat", **sampling})


def steps(events: list[Any]) -> list[tuple[int, int]]:
    return [(event.done, event.total) for event in events if isinstance(event, SamplingProgress)]


def test_task_yields_images_and_progress(workshop: Workshop, tmp_path: Path) -> None:
    task = generate_jobs.generate(sampling_config(workshop, tmp_path, num_cols=2, preview_interval=2))
    assert task.wait(120)
    assert (task.state, task.error) == ("done", "")
    paths = [event for event in task.events if isinstance(event, Path)]
    assert [p.name for p in paths] == ["image_00000.png", "image_00001.png", "grid_00000.png"]
    progress = [event for event in task.events if isinstance(event, SamplingProgress)]
    assert steps(task.events) == [(k, 6) for k in range(1, 7)]
    assert [len(p.previews) for p in progress] == [0, 1, 0, 0, 1, 0]
    assert all(p.latents is None and not p.images for p in progress)
    expected = api.generate(api.load(workshop.config()), "a cat")
    with Image.open(paths[0]) as image:
        assert np.abs(np.asarray(image).astype(int) - expected[0]).max() <= 1


def test_compare_uses_the_same_seeds_for_both_prompts(workshop: Workshop, tmp_path: Path) -> None:
    configs = [sampling_config(workshop, tmp_path, prompt=prompt, num_cols=2) for prompt in ("a cat", "a red cat")]
    task = generate_jobs.compare(configs, "a cat → a red cat")
    assert task.wait(120)
    assert steps(task.events) == [(k, 12) for k in range(1, 13)]
    parameters = [
        image_files.read_parameters(p) for p in task.events if isinstance(p, Path) and p.name.startswith("image")
    ]
    assert [(p["prompt"], p["seed"]) for p in parameters] == [
        (prompt, 42 + k) for prompt in ("a cat", "a red cat") for k in (0, 1)
    ]


def test_a_comparison_of_too_many_images_is_refused(workshop: Workshop, tmp_path: Path) -> None:
    configs = [sampling_config(workshop, tmp_path, prompt="a cat", num_cols=26)] * 4
    with pytest.raises(UserError, match="these would be 104 images; compare at most 100"):
        generate_jobs.compare(configs, "a cat")
    configs = [sampling_config(workshop, tmp_path, prompt="a cat", num_cols=17, img=["a.png", "b.png"])] * 3
    with pytest.raises(UserError, match="these would be 102 images; compare at most 100"):
        generate_jobs.compare(configs, "a cat")


def test_model_is_loaded_once_and_replaced_by_another(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads, load = [], api.load
    monkeypatch.setattr(api, "load", lambda config: loads.append(config.run.pooling) or load(config))
    monkeypatch.setattr(generate_jobs, "_loaded", [])
    for pooling in ("end_of_text", "end_of_text", "argmax", "end_of_text"):
        config = workshop.config(run={"pooling": pooling}, sampling={"save_path": str(tmp_path), "prompt": "a cat"})
        task = generate_jobs.generate(config)
        assert task.wait(120)
        assert task.state == "done"
    assert loads == ["end_of_text", "argmax", "end_of_text"]
    assert len(generate_jobs._loaded) == 1


def test_models_of_a_comparison_are_loaded_one_after_the_other(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[Any] = []
    monkeypatch.setattr(generate_jobs, "_loaded", [])
    monkeypatch.setattr(
        api, "load", lambda config: events.append(("load", config.run.pooling)) or SimpleNamespace(pipeline=None)
    )
    monkeypatch.setattr(
        run, "run_job", lambda pipeline, job, _: events.append(job.config.sampling.seed) or iter([tmp_path])
    )
    configs = [
        workshop.config(run={"pooling": pooling}, sampling={"save_path": str(tmp_path), "prompt": "a cat", "seed": k})
        for k, pooling in enumerate(("argmax", "end_of_text", "argmax", "end_of_text"))
    ]
    task = generate_jobs.compare(configs, "a cat")
    assert task.wait(20)
    assert (task.state, task.error) == ("done", "")
    assert events == [("load", "argmax"), 0, 2, ("load", "end_of_text"), 1, 3]


def test_prompt_is_not_a_file_name_and_errors_are_raised_at_once(workshop: Workshop, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("a secret")
    task = generate_jobs.generate(sampling_config(workshop, tmp_path / "out", prompt=str(secret)))
    assert task.wait(120)
    assert {image_files.read_parameters(p)["prompt"] for p in task.events if isinstance(p, Path)} == {str(secret)}
    with pytest.raises(UserError, match="unknown sampler"):
        generate_jobs.generate(sampling_config(workshop, tmp_path, sampler="eulr"))
    with pytest.raises(UserError, match="--prompt is empty"):
        generate_jobs.generate(sampling_config(workshop, tmp_path, prompt=" "))


def test_missing_weights_fail_the_task(workshop: Workshop, tmp_path: Path) -> None:
    config = workshop.config(run={"weight": "nowhere.ckpt"}, sampling={"save_path": str(tmp_path), "prompt": "a cat"})
    task = generate_jobs.generate(config)
    assert task.wait(60)
    assert (task.state, "no weights nowhere.ckpt" in task.error) == ("failed", True)


def test_cancelled_task_keeps_its_finished_images(workshop: Workshop, tmp_path: Path) -> None:
    task = generate_jobs.generate(sampling_config(workshop, tmp_path, num_cols=50))
    while not any(isinstance(event, Path) for event in task.events):
        task.wait(0.01)
    task.cancel()
    assert task.wait(60)
    assert task.state == "cancelled"
    assert 1 <= len(list(tmp_path.glob("image_*.png"))) < 50


def test_a_skipped_image_is_left_out_and_the_others_have_their_own_parameters(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = generate_jobs.run.run_job

    def run_job(pipeline: Any, job: Any, skip: Any) -> Any:
        for event in sample(pipeline, job, skip):
            if isinstance(event, SamplingProgress) and event.done == 4:
                task.skip()
            yield event

    monkeypatch.setattr(generate_jobs.run, "run_job", run_job)
    task = generate_jobs.generate(sampling_config(workshop, tmp_path, num_cols=3))
    assert task.wait(120)
    assert (task.state, task.error) == ("done", "")
    paths = [event for event in task.events if isinstance(event, Path)]
    assert [image_files.read_parameters(path)["seed"] for path in paths if path.name.startswith("image")] == [42, 44]
    progress = [event for event in task.events if isinstance(event, generate_jobs.TaskProgress)]
    assert [(each.image, each.skipped) for each in progress] == [(1, 0)] * 3 + [(2, 0), (2, 1)] + [(3, 0)] * 3
    assert (progress[-1].done, progress[-1].total, progress[-1].num_images) == (9, 9, 3)


def test_time_left_leaves_out_compilation_and_skipped_steps() -> None:
    def step(done: int, time: float, skipped: int = 0) -> generate_jobs.TaskProgress:
        return generate_jobs.TaskProgress(done, 20, skipped=skipped, time=time)

    assert generate_jobs.seconds_left([]) is None
    assert generate_jobs.seconds_left([step(1, 100)]) is None
    steps = [step(1, 100), step(2, 102), step(3, 104)]
    assert generate_jobs.seconds_left(steps) == 17 * 2
    assert generate_jobs.seconds_left([*steps, step(10, 104, skipped=1)]) == 10 * 2
