"""The page Compare: the steps of a run side by side, and grids over two options."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from demo.app import compare, xy_axes
from demo.app.server import generate_jobs
from demo.app.sidebar import ModelSelection
from demo.app.xy_axes import NO_AXIS, Axis, Source
from gm.checkpoints import config_choice
from gm.config import Config
from gm.errors import UserError
from gm.sampling import image_files
from tests.demo.test_app import button, shown, wait_for
from tests.demo.test_app_train import write_run
from tests.project import Workshop


def axis(name: str, values: list[Any], apply: Callable[..., Any]) -> Axis:
    return Axis(name, values, [str(value) for value in values], apply)


def open_kind(app: Callable[[str], AppTest], kind: str) -> AppTest:
    page = app("compare")
    page.radio(key="option comparison").set_value(kind).run()
    assert not page.exception
    return page


def test_a_grid_over_two_options_has_each_combination(
    app: Callable[[str], AppTest], embedding_file: Path, tmp_path: Path
) -> None:
    page = app("compare")
    page.multiselect(key="embeddings").select("<toy>").run()
    page.radio(key="option comparison").set_value(compare.GRID).run()
    assert not page.exception
    page.text_input(key="option prompt of the grid").set_value("a {} and a cat")
    page.text_input(key="option X CFG scale values").set_value("1, 3")
    page.text_input(key="option Y Embedding strength values").set_value("0.5-1 [2]").run()
    assert "2 × 2 cells: 4 images" in [shown(each) for each in page.caption]
    button(page, "Compare").click()
    page = wait_for(page.run(), compare.TASK_KEY)
    assert not page.error
    images = sorted((tmp_path / "out").rglob("image_*.png"))
    assert [path.parent.name for path in images] == ["000", "001", "002", "003"]
    parameters = [image_files.read_parameters(path) for path in images]
    assert [(p["guidance_scale"], p["prompt"], p["seed"]) for p in parameters] == [
        (1.0, "a (<toy>:0.5) and a cat", 42),
        (3.0, "a (<toy>:0.5) and a cat", 42),
        (1.0, "a <toy> and a cat", 42),
        (3.0, "a <toy> and a cat", 42),
    ]
    assert [shown(each) for each in page.caption if "CFG" in each.value] == ["CFG scale 1", "CFG scale 3"] * 2
    assert len(page.get("imgs")) == 4
    again = app("compare")  # the server has forgotten the task, the images are there
    again.session_state["last comparison"] = page.session_state["last comparison"]
    again.session_state["session_id"] = page.session_state["session_id"]
    assert len(again.run().get("imgs")) == 4


def test_a_grid_over_denoising_strength_starts_from_an_init_image(
    app: Callable[[str], AppTest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: list[Config] = []

    def submit(configs: list[Config], title: str, owner: Any) -> None:
        requests.extend(configs)
        raise UserError("enough")

    monkeypatch.setattr(generate_jobs, "compare", submit)
    page = open_kind(app, compare.GRID)
    page.selectbox(key="option Y axis").set_value("Denoising strength").run()
    assert "Upload an init image" in shown(page.info[0])
    assert not any(each.label == "Compare" for each in page.button)
    images = [image_files.save(np.zeros((16, 16, 3), np.uint8), {}, tmp_path, "init") for _ in range(2)]
    page.session_state["previous inputs"] = {"img": [str(path) for path in images], "mask": None}
    page.text_input(key="option X CFG scale values").set_value("2")
    page.text_input(key="option Y Denoising strength values").set_value("0.2-0.6 (+0.4)").run()
    assert "2 × 1 cells of 2 images: 4 images" in [shown(each) for each in page.caption]
    button(page, "Compare").click().run()
    assert [(each.sampling.task, each.sampling.strength, each.sampling.guidance_scale) for each in requests] == [
        ("img2img", 0.2, 2.0),
        ("img2img", 0.6, 2.0),
    ]
    assert requests[0].sampling.img == [str(path) for path in images]
    page.text_input(key="option Y Denoising strength values").set_value("1.5").run()
    assert "1.5 is not possible here; it must be from 0 to 1" in shown(page.error[0])
    page.selectbox(key="option Y axis").set_value("Guidance rescale").run()
    page.checkbox(key="option grid of img2img").check().run()
    page.slider(key="option compared strength").set_value(0.3).run()
    requests.clear()
    button(page, "Compare").click().run()
    assert [(each.sampling.strength, each.sampling.guider, each.sampling.guidance_rescale) for each in requests] == [
        (0.3, "rescaled", 0.0),
        (0.3, "rescaled", 0.35),
        (0.3, "rescaled", 0.7),
    ]
    assert not page.exception


def test_the_steps_of_a_run_are_beside_each_other(
    app: Callable[[str], AppTest], embedding_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Config] = []

    def submit(configs: list[Config], title: str, owner: Any) -> None:
        asked.extend(configs)
        raise UserError("enough")

    monkeypatch.setattr(generate_jobs, "compare", submit)
    write_run(tmp_path / "runs" / "app" / "toy", embedding_file)
    page = app("compare")
    page.multiselect(key="embeddings").select(page.multiselect(key="embeddings").options[0]).run()
    page.radio(key="option comparison").set_value(compare.STEPS).run()
    assert page.multiselect(key="option compared steps of toy values").value == ["10", "20"]
    button(page, "Compare").click().run()
    assert shown(page.error[0]) == "enough"
    assert [Path(each.sampling.textual_inversion_weight[-1]).name for each in asked] == [
        "smallest_10_ti.ckpt",
        "smallest_20_ti.ckpt",
    ]
    assert {len(each.sampling.textual_inversion_weight) for each in asked} == {1}  # not the selected one of that name
    assert {each.sampling.prompt for each in asked} == {"a <toy> on a blue background"}


def test_without_a_run_the_steps_say_how_to_get_one(app: Callable[[str], AppTest]) -> None:
    page = open_kind(app, compare.STEPS)
    assert "Train an embedding on the page Train" in shown(page.info[0])


def test_a_bad_axis_is_named_and_the_other_stays(app: Callable[[str], AppTest]) -> None:
    page = open_kind(app, compare.GRID)
    page.text_input(key="option X CFG scale values").set_value("many").run()
    assert "'many' is not a number or range" in shown(page.error[0])
    assert page.selectbox(key="option Y axis").value == "Steps"
    assert not any(each.label == "Compare" for each in page.button)
    page.text_input(key="option X CFG scale values").set_value("2").run()
    assert not page.error
    page.selectbox(key="option Y axis").set_value("CFG scale").run()
    assert "both axes are CFG scale" in shown(page.error[0])


def test_cells_name_the_embedding_or_its_baseline() -> None:
    source = Source("a <toy>, {}", "<toy>", "cat", {"<toy>": Path("toy.ckpt"), "<b>": Path("b.ckpt")})
    embeddings = axis(
        xy_axes.EMBEDDING, ["<b>", xy_axes.WITHOUT], lambda cell, token: xy_axes._with_token(cell, token, source)
    )
    strengths = axis(xy_axes.STRENGTH, [1.0, 1.5], xy_axes._with_strength)
    cells = xy_axes.cells(strengths, embeddings, source)
    assert [(cell.prompt(source), cell.path) for cell in cells] == [
        ("a <b>, <b>", Path("b.ckpt")),
        ("a (<b>:1.5), (<b>:1.5)", Path("b.ckpt")),
        ("a cat, cat", None),
        ("a cat, cat", None),
    ]


def test_checkpoints_of_the_family_are_an_axis(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    config = workshop.config()
    selection = ModelSelection(config, str(workshop.yaml), {})
    weights = axis(xy_axes.CHECKPOINT, [config.run.weight, "other.ckpt"], xy_axes._with_weight)
    source = Source("a cat")
    cells = xy_axes.cells(weights, NO_AXIS, source)
    configs = [xy_axes.config_of(cell, source, selection, {"seed": 7}) for cell in cells]
    assert [(each.run.weight, each.sampling.seed) for each in configs] == [(config.run.weight, 7), ("other.ckpt", 7)]
    assert {each.model for each in configs} == {config.model}
    sd_config = "configs/training/sd_v1.5_textual_inversion.yaml"
    monkeypatch.setattr(config_choice, "config_for", lambda *_: (sd_config, {}))
    with pytest.raises(UserError, match=r"other.ckpt is of the family sd1, not sdxl; take it off the axis"):
        xy_axes.config_of(cells[1], source, selection, {})


@pytest.mark.parametrize(
    ("x", "y", "prompt", "message"),
    [
        (xy_axes.EMBEDDING, xy_axes.STEP, "a {}", "Embedding and Training step both choose the embedding file"),
        (xy_axes.STRENGTH, xy_axes.NONE, "a cat", "the prompt holds neither {} nor <toy>; add one"),
    ],
)
def test_axes_that_exclude_each_other_are_refused(x: str, y: str, prompt: str, message: str) -> None:
    source = Source(prompt, "<toy>", "cat", {"<toy>": Path("toy.ckpt")})
    axes = [NO_AXIS if name == xy_axes.NONE else axis(name, [1.0], xy_axes._with_strength) for name in (x, y)]
    with pytest.raises(UserError, match=message):
        xy_axes.cells(*axes, source)
