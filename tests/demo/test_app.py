"""The app's pages in Streamlit's own test driver, with the smallest model."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from demo.app import compare, generate, labels, options, plain
from demo.app.server import training_jobs
from demo.sampling import VERSION2SPECS
from gm import config as configuration
from gm.config import SamplingConfig, family_options
from gm.embeddings.embedding import Embedding
from gm.sampling import image_files
from tests.project import Workshop


def button(app: AppTest, label: str) -> Any:
    return next(each for each in app.button if each.label == label)


def shown(element: Any) -> str:
    """Return what a user reads of an error or the like, whose text is escaped Markdown."""
    return plain.unescape(element.value)


def wait_for(app: AppTest, task_key: str) -> AppTest:
    assert app.session_state[task_key].wait(120)
    return app.run()


def test_every_sampling_option_is_on_the_page() -> None:
    names = [*options.MAIN, *(name for tab in options.TABS.values() for name in tab)]
    assert len(names) == len(set(names))
    assert not set(names) & options.SET_BY_PAGE
    assert set(names) | options.SET_BY_PAGE == {field.name for field in dataclasses.fields(SamplingConfig)}
    assert set(labels.LABELS) == {*names, *options.RUN}
    assert len(set(labels.LABELS.values())) == len(labels.LABELS)


def test_version_specs_agree_with_their_configs() -> None:
    for spec in VERSION2SPECS.values():
        model = configuration.load(spec["config"]).model
        assert (spec["H"], spec["W"]) == (model.resolution, model.resolution)
        assert (spec["C"], spec["f"]) == (model.vae.latent_channels, model.vae.downsample_factor)
        names = {"H", "W", "C", "f", "is_legacy", "config", "ckpt", "textual_inversion_weight"}
        assert set(spec) == names


def test_options_of_sdxl_are_not_shown_for_stable_diffusion() -> None:
    for spec in VERSION2SPECS.values():
        model = configuration.load(spec["config"]).model
        hidden = family_options.inapplicable(model)
        assert spec["is_legacy"] == (not model.zero_unconditional)
        assert {"pooling", "orig_height", "add_pipeline", "pipeline_weight"} <= hidden or model.family == "sdxl"
        on_page = {*options.RUN, *(name for names in options.TABS.values() for name in names)}
        assert hidden <= on_page | {"sd_xl_base_ratios"}  # which the size presets stand for
        assert not hidden & {"height", "width"}


def test_errors_are_shown_and_nothing_is_generated(app: Callable[[str], AppTest], tmp_path: Path) -> None:
    page = app("generate")
    button(page, "Generate").click().run()
    assert '"Prompt" is empty' in shown(page.error[0])
    page.text_area(key="prompt").set_value("a cat")
    page.number_input(key=options.widget_key("height")).set_value(9)
    button(page, "Generate").click().run()
    assert "it must be a multiple of 2" in shown(page.error[0])
    page.number_input(key=options.widget_key("height")).set_value(None)
    page.radio(key="task").set_value("img2img").run()
    button(page, "Generate").click().run()
    assert '"Init images" is empty' in shown(page.error[0])
    assert not (tmp_path / "out").exists()


def test_missing_weights_are_reported(app: Callable[[str], AppTest]) -> None:
    page = app("generate")
    page.text_input(key="weight of smallest").set_value("nowhere.ckpt").run()
    assert "nowhere.ckpt is not a file" in shown(page.warning[0])
    assert not page.exception
    page.text_input(key="weight of smallest").set_value(" ").run()
    assert not page.warning  # the default weights, which exist


def test_text_fields_take_text_literally_and_paths_in_the_home_folder(
    app: Callable[[str], AppTest], workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(workshop.folder))
    page = app("generate")
    page.text_input(key="weight of smallest").set_value("~/weights.ckpt")
    page.text_input(key=options.widget_key("pipeline_weight")).set_value("~/refiner.ckpt")
    page.text_area(key="prompt").set_value("${oc.env:HOME} \\${oc.env:HOME}").run()
    assert not page.warning
    button(page, "Generate").click().run()
    page = wait_for(page, generate.TASK_KEY)
    assert not page.error
    (image,) = sorted((tmp_path / "out").rglob("image_*.png"))
    parameters = image_files.read_parameters(image)
    assert parameters["prompt"] == "${oc.env:HOME} \\${oc.env:HOME}"
    assert parameters["weight"] == str(workshop.folder / "weights.ckpt")
    assert parameters["pipeline_weight"] == str(workshop.folder / "refiner.ckpt")
    page.text_input(key="weight of smallest").set_value("~/${oc.env:HOME}").run()
    assert f"{workshop.folder}/${{oc.env:HOME}} is not a file" in shown(page.warning[0])


def test_compare_generates_both_prompts_with_the_same_seeds(
    app: Callable[[str], AppTest], embedding_file: Path, tmp_path: Path
) -> None:
    page = app("compare")
    assert "Select an embedding" in shown(page.info[0])
    page.multiselect(key="embeddings").select("<toy>").run()
    assert page.text_input(key="option prompt of <toy>").value == "a <toy> on a blue background"
    assert page.text_input(key="option baseline of a <toy> on a blue background").value == "a cat on a blue background"
    page.slider(key="option compared images").set_value(2)
    button(page, "Compare").click().run()
    page = wait_for(page, compare.TASK_KEY)
    assert not page.error
    assert [each.value for each in page.subheader] == ["Baseline", "With embedding"]
    images = sorted((tmp_path / "out").rglob("image_*.png"))
    parameters = [image_files.read_parameters(path) for path in images]
    assert [(p["prompt"][:5], p["seed"]) for p in parameters] == [
        ("a cat", 42),
        ("a cat", 43),
        ("a <to", 42),
        ("a <to", 43),
    ]


@pytest.mark.e2e
def test_training_needs_images_and_an_existing_run_is_shown(
    app: Callable[[str], AppTest], workshop: Workshop, tmp_path: Path
) -> None:
    page = app("train")
    button(page, "Train").click().run()
    assert "no image was uploaded" in shown(page.error[0])
    chosen = {"placeholder_token": "<toy>", "data_path": str(workshop.folder / "images"), "total_step": 3}
    job = training_jobs.start(str(workshop.yaml), tmp_path / "runs" / "app", chosen)
    while job.state == "running":
        time.sleep(0.1)
    assert job.state == "finished", job.console_tail()
    page = app("train")
    assert page.selectbox(key="training run").value == "toy"
    button(page, "Use this embedding").click().run()
    assert page.session_state["embeddings"] == ["<toy>"]


def test_run_folders_without_a_job_file_do_not_break_the_page(app: Callable[[str], AppTest], tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "app" / "old"
    folder.mkdir(parents=True)
    (folder / "order.json").write_text(json.dumps({"config": "c.yaml", "options": {}, "pid": 1, "said": 0}))
    page = app("train")
    assert any("are listed here" in each.value for each in page.caption)


def test_training_starts_with_all_chosen_options(
    app: Callable[[str], AppTest], workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: dict[str, Any] = {}

    def start(config: str, root: Path, options: dict[str, Any], owner: str, version: str) -> training_jobs.TrainingJob:
        started.update(options, config=config)
        assert version == "smallest"
        return training_jobs.TrainingJob(root)

    images = tmp_path / "runs" / "app" / "images" / "uploaded"
    shutil.copytree(workshop.folder / "images", images)
    monkeypatch.setattr(training_jobs, "start", start)
    page = app("train")
    page.session_state["training images"] = str(images)
    page.selectbox(key="option pooling").set_value("argmax")
    page.text_input(key="option vae").set_value(" sdxl_vae.safetensors ")
    page.text_area(key="option lora_weight").set_value("detail.safetensors:0.5")
    page.selectbox(key="option low_memory").set_value("most")
    page.selectbox(key="option ms_mode").set_value(1)
    page.text_input(key="option placeholder token").set_value("<new>")
    page.number_input(key="option steps of smallest").set_value(8)
    button(page, "Train").click().run()
    assert not page.error
    copied = Path(started.pop("data_path"))
    assert copied.parent == images.parent != images
    assert sorted(path.name for path in copied.iterdir()) == ["0.png", "1.png", "2.png"]
    assert started == {
        "config": str(workshop.yaml),
        "placeholder_token": "<new>",
        "learnable_property": "object",
        "num_vectors": workshop.config().concept.num_vectors,
        "total_step": 8,
        "learning_rate": workshop.config().training.learning_rate,
        "infer_during_train": True,
        "infer_interval": 2,
        "save_ckpt_interval": 2,
        "device_target": workshop.config().run.device_target,
        "ms_mode": 1,
        "precision": "auto",
        "low_memory": "most",
        "flash_attention": "auto",
        "jit_level": "O0",
        "max_device_memory": "",
        "weight": workshop.config().run.weight,
        "revision": None,
        "variant": None,
        "cache_weights": False,
        "vae": "sdxl_vae.safetensors",
        "unet": "",
        "lora_weight": ["detail.safetensors:0.5"],
        "pooling": "argmax",
    }


def test_inputs_persist_across_pages(app: Callable[[str], AppTest], embedding_file: Path) -> None:
    page = app("generate")
    page.multiselect(key="embeddings").select("<toy>").run()
    texts = {
        "generate": {"prompt": "a <toy>", "negative_prompt": "grey"},
        "compare": {"option prompt of <toy>": "two <toy>", "option baseline of two <toy>": "two cats"},
        "train": {"option placeholder token": "<new>", "option initializer token": "cat"},
    }
    numbers = {
        "generate": {"option sample_step": 7},
        "train": {
            "option num vectors of smallest": 5,
            "option steps of smallest": 9,
            "option preview interval of 9": 4,
        },
    }
    for name, fields in texts.items():
        page.session_state["page"] = name
        page.run()
        for key, value in fields.items():
            next(field for field in (*page.text_input, *page.text_area) if field.key == key).set_value(value).run()
        for key, number in numbers.get(name, {}).items():
            page.number_input(key=key).set_value(number).run()
    for name, fields in texts.items():
        page.session_state["page"] = name
        page.run()
        values = {field.key: field.value for field in (*page.text_input, *page.text_area, *page.number_input)}
        assert fields.items() | numbers.get(name, {}).items() <= values.items()
        assert page.multiselect(key="embeddings").value == ["<toy>"]
        assert not page.warning


@pytest.mark.parametrize(
    ("recipe", "token"),
    [
        ({"concept": {"initializer_token": "cat"}}, "cat"),
        ({"concept": {"initializer_token": "cat", "concepts": [{"placeholder_token": "<toy>"}, 3]}}, "cat"),
        ({"concept": {"concepts": [{"placeholder_token": "<toy>", "initializer_token": "dog"}]}}, "dog"),
        ({"concept": {"concepts": "somebody's", "initializer_token": 7}}, "7"),
        ({"concept": ["somebody's"]}, "thing"),
        ("somebody's", "thing"),
    ],
)
def test_baseline_prompt_uses_the_initializer_token(recipe: Any, token: str) -> None:
    vectors = np.zeros((1, 4), np.float32)
    embedding = Embedding("<toy>", {"clip_l": vectors, "clip_g": vectors}, metadata={"recipe": recipe})
    assert compare.initializer_token(embedding) == token


def test_server_listens_on_localhost_and_sends_no_statistics() -> None:
    assert st.get_option("server.address") == "localhost"
    assert st.get_option("browser.gatherUsageStats") is False


def test_pages_follow_the_choice_of_light_or_dark() -> None:
    assert st.get_option("theme.base") is None  # it would be the same for all
    assert st.get_option("theme.light.primaryColor") != st.get_option("theme.dark.primaryColor")
