"""The app's pages, run by Streamlit's own test driver on the smallest model."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from demo.app import compare, options
from demo.app.server import generate_jobs, training_jobs, uploads
from demo.sampling import VERSION2SPECS
from gm import config as configuration
from gm.config import SamplingConfig
from gm.embeddings.embedding import Embedding
from gm.sampling import image_files
from tests.project import Workshop


def button(app: AppTest, label: str) -> Any:
    return next(each for each in app.button if each.label == label)


def ended(app: AppTest, name: str) -> AppTest:
    assert app.session_state[name].wait(120)
    return app.run()


def test_every_option_of_drawing_is_on_the_page() -> None:
    shown = [*options.FIRST, *(name for names in options.GROUPS.values() for name in names)]
    assert len(shown) == len(set(shown))
    assert not set(shown) & options.BY_THE_PAGE
    assert set(shown) | options.BY_THE_PAGE == {field.name for field in dataclasses.fields(SamplingConfig)}


def test_what_the_versions_hold_is_what_their_configs_say() -> None:
    for spec in VERSION2SPECS.values():
        model = configuration.load(spec["config"]).model
        assert (spec["H"], spec["W"]) == (model.resolution, model.resolution)
        assert (spec["C"], spec["f"]) == (model.vae.latent_channels, model.vae.reduction)
        names = {"H", "W", "C", "f", "is_legacy", "config", "ckpt", "textual_inversion_weight"}
        assert set(spec) == names


def test_a_word_is_offered_drawn_and_its_recipe_used_again(
    app: Callable[[str], AppTest], learned: Path, tmp_path: Path
) -> None:
    page = app("draw")
    page.multiselect(key="words").select("<toy>").run()
    page.text_area(key="prompt").set_value("a red")
    page.button_group(key="offered").set_value(["<toy>"]).run()
    assert page.text_area(key="prompt").value == "a red <toy>"
    page.selectbox(key=options.key("sampler")).set_value("heun")
    page.number_input(key=options.key("seed")).set_value(7)
    page.number_input(key=options.key("num_cols")).set_value(2)
    button(page, "Draw").click().run()
    page = ended(page, "drawing")
    assert not page.error
    recipes = [image_files.read_parameters(path) for path in sorted((tmp_path / "out").rglob("image_*.png"))]
    assert [(r["prompt"], r["seed"], r["sampler"]) for r in recipes] == [
        ("a red <toy>", 7, "heun"),
        ("a red <toy>", 8, "heun"),
    ]
    assert recipes[0]["textual_inversion_weight"] == [str(learned)]
    page.text_area(key="prompt").set_value("another")
    page.multiselect(key="words").unselect("<toy>")
    page.selectbox(key=options.key("sampler")).set_value("euler").run()
    again = [each for each in page.button if each.key and each.key.startswith("again")]
    assert len(again) == 2
    again[0].click().run()
    assert page.text_area(key="prompt").value == "a red <toy>"
    assert page.selectbox(key=options.key("sampler")).value == "heun"
    assert page.number_input(key=options.key("seed")).value == 8
    assert page.multiselect(key="words").value == ["<toy>"]
    assert not page.exception


def test_a_recipe_that_starts_from_an_image_is_used_again(
    app: Callable[[str], AppTest], workshop: Workshop, tmp_path: Path
) -> None:
    own, start = tmp_path / "out" / "somebody", str(workshop.folder / "images" / "0.png")
    config = workshop.config()
    asked = {"task": "img2img", "img": [start], "strength": 0.5, "prompt": "a cat", "save_path": str(own)}
    generate_jobs.draw(dataclasses.replace(config, sampling=dataclasses.replace(config.sampling, **asked))).wait(120)
    page = app("draw")
    page.session_state["visitor"] = "somebody"
    page.run()
    next(each for each in page.button if each.key and each.key.startswith("again")).click().run()
    assert (page.radio(key="task").value, page.slider(key="strength").value) == ("img2img", 0.5)
    button(page, "Draw").click().run()
    page = ended(page, "drawing")
    assert not page.error
    assert not page.exception
    first, second = (image_files.read_parameters(path) for path in sorted(own.glob("image_*.png")))
    assert second == first


def test_words_that_a_recipe_needs_and_that_are_gone_are_named(
    app: Callable[[str], AppTest], learned: Path, tmp_path: Path
) -> None:
    page = app("draw")
    page.session_state["files of recipe"] = ["gone.ckpt", str(learned)]
    page.run()
    assert page.multiselect(key="words").value == ["<toy>"]
    assert [each.value for each in page.warning] == [
        "The recipe needs gone.ckpt, which is not there; send it below, or learn the word again."
    ]


def test_mistakes_are_shown_and_nothing_is_drawn(app: Callable[[str], AppTest], tmp_path: Path) -> None:
    page = app("draw")
    button(page, "Draw").click().run()
    assert "--prompt is empty" in page.error[0].value
    page.text_area(key="prompt").set_value("a cat")
    page.number_input(key=options.key("height")).set_value(9)
    button(page, "Draw").click().run()
    assert "it must be a multiple of 2" in page.error[0].value
    page.number_input(key=options.key("height")).set_value(None)
    page.radio(key="task").set_value("img2img").run()
    button(page, "Draw").click().run()
    assert "--img is empty" in page.error[0].value
    assert not (tmp_path / "out").exists()


def test_weights_that_are_not_there_are_said_to_be(app: Callable[[str], AppTest]) -> None:
    page = app("draw")
    page.text_input(key="weight of smallest").set_value("nowhere.ckpt").run()
    assert "There is not a file nowhere.ckpt" in page.warning[0].value
    assert not page.exception
    page.text_input(key="weight of smallest").set_value(" ").run()
    assert not page.warning  # those at first, which are there


def test_before_and_after(app: Callable[[str], AppTest], learned: Path, tmp_path: Path) -> None:
    page = app("compare")
    assert "Choose a learned word" in page.info[0].value
    page.multiselect(key="words").select("<toy>").run()
    assert page.text_input(key="option prompt of <toy>").value == "a <toy> on a blue background"
    assert page.text_input(key="option plain a <toy> on a blue background").value == "a cat on a blue background"
    page.slider(key="option compared images").set_value(2)
    button(page, "Compare").click().run()
    page = ended(page, "comparing")
    assert not page.error
    assert [each.value for each in page.subheader] == ["Before", "After"]
    written = sorted((tmp_path / "out").rglob("image_*.png"))
    recipes = [image_files.read_parameters(path) for path in written]
    assert [(r["prompt"][:5], r["seed"]) for r in recipes] == [
        ("a cat", 42),
        ("a cat", 43),
        ("a <to", 42),
        ("a <to", 43),
    ]


def test_a_run_needs_images_and_one_that_is_there_is_shown(
    app: Callable[[str], AppTest], workshop: Workshop, tmp_path: Path
) -> None:
    page = app("learn")
    button(page, "Learn").click().run()
    assert "no image was sent" in page.error[0].value
    given = {"placeholder_token": "<toy>", "data_path": str(workshop.folder / "images"), "total_step": 3}
    run = training_jobs.start(str(workshop.yaml), tmp_path / "runs" / "app", given)
    while run.state == "running":
        time.sleep(0.1)
    assert run.state == "finished", run.tail()
    page = app("learn")
    assert page.selectbox(key="run").value == "toy"
    button(page, "Use it").click().run()
    assert page.session_state["words"] == ["<toy>"]


def test_a_run_is_started_with_all_that_was_chosen(
    app: Callable[[str], AppTest], workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def started(config: str, root: Path, options: dict[str, Any]) -> training_jobs.Run:
        asked.update(options, config=config)
        return training_jobs.Run(root)

    monkeypatch.setattr(uploads, "images", lambda contents, folder: [])
    monkeypatch.setattr(training_jobs, "start", started)
    page = app("learn")
    page.selectbox(key="option pooling").set_value("argmax")
    page.selectbox(key="option low_memory").set_value("most")
    page.selectbox(key="option ms_mode").set_value(1)
    page.text_input(key="option new word").set_value("<new>")
    page.number_input(key="option steps of smallest").set_value(8)
    button(page, "Learn").click().run()
    assert not page.error
    assert Path(asked.pop("data_path")).parent == tmp_path / "runs" / "app" / "images"
    assert asked == {
        "config": str(workshop.yaml),
        "placeholder_token": "<new>",
        "learnable_property": "object",
        "num_vectors": workshop.config().concept.num_vectors,
        "total_step": 8,
        "learning_rate": workshop.config().training.learning_rate,
        "infer_during_train": True,
        "infer_interval": 2,
        "device_target": workshop.config().run.device_target,
        "ms_mode": 1,
        "precision": "auto",
        "low_memory": "most",
        "weight": workshop.config().run.weight,
        "pooling": "argmax",
    }


def test_what_is_typed_is_there_when_the_page_is_shown_again(app: Callable[[str], AppTest], learned: Path) -> None:
    page = app("draw")
    page.multiselect(key="words").select("<toy>").run()
    typed = {
        "draw": {"prompt": "a <toy>", "negative_prompt": "grey"},
        "compare": {"option prompt of <toy>": "two <toy>", "option plain two <toy>": "two cats"},
        "learn": {"option new word": "<new>", "option like": "cat"},
    }
    numbers = {
        "draw": {"option sample_step": 7},
        "learn": {"option vectors of smallest": 5, "option steps of smallest": 9, "option shown of 9": 4},
    }
    for name, fields in typed.items():
        page.session_state["page"] = name
        page.run()
        for key, value in fields.items():
            next(field for field in (*page.text_input, *page.text_area) if field.key == key).set_value(value).run()
        for key, number in numbers.get(name, {}).items():
            page.number_input(key=key).set_value(number).run()
    for name, fields in typed.items():
        page.session_state["page"] = name
        page.run()
        found = {field.key: field.value for field in (*page.text_input, *page.text_area, *page.number_input)}
        assert fields.items() | numbers.get(name, {}).items() <= found.items()
        assert page.multiselect(key="words").value == ["<toy>"]
        assert not page.warning


@pytest.mark.parametrize(
    ("recipe", "before"),
    [
        ({"concept": {"initializer_token": "cat"}}, "cat"),
        ({"concept": {"initializer_token": "cat", "concepts": [{"placeholder_token": "<toy>"}, 3]}}, "cat"),
        ({"concept": {"concepts": [{"placeholder_token": "<toy>", "initializer_token": "dog"}]}}, "dog"),
        ({"concept": {"concepts": "somebody's", "initializer_token": 7}}, "7"),
        ({"concept": ["somebody's"]}, "thing"),
        ("somebody's", "thing"),
    ],
)
def test_a_word_is_compared_with_what_it_started_from(recipe: Any, before: str) -> None:
    row = np.zeros((1, 4), np.float32)
    assert compare._before(Embedding("<toy>", {"clip_l": row, "clip_g": row}, metadata={"recipe": recipe})) == before


def test_the_server_is_for_this_machine_and_tells_nobody() -> None:
    assert st.get_option("server.address") == "localhost"
    assert st.get_option("browser.gatherUsageStats") is False
