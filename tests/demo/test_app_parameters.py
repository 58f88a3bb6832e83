"""Parameters of an image, used again on the page Generate."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from streamlit.testing.v1 import AppTest

from demo.app import generate, options, plain
from demo.app.server import generate_jobs
from gm.embeddings import io as embedding_io
from gm.sampling import image_files
from tests.project import Workshop


def button(app: AppTest, label: str) -> Any:
    return next(each for each in app.button if each.label == label)


def use_parameters_buttons(app: AppTest) -> list[Any]:
    return [each for each in app.button if each.key and each.key.startswith("use parameters")]


def wait_for(app: AppTest, task_key: str) -> AppTest:
    assert app.session_state[task_key].wait(120)
    return app.run()


def test_generate_with_an_embedding_and_use_the_parameters_again(
    app: Callable[[str], AppTest], embedding_file: Path, tmp_path: Path
) -> None:
    page = app("generate")
    page.multiselect(key="embeddings").select("<toy>").run()
    page.text_area(key="prompt").set_value("a red")
    page.button_group(key="token buttons").set_value(["<toy>"]).run()
    assert page.text_area(key="prompt").value == "a red <toy>"
    page.selectbox(key=options.widget_key("sampler")).set_value("heun")
    page.number_input(key=options.widget_key("seed")).set_value(7)
    page.number_input(key=options.widget_key("num_cols")).set_value(2)
    button(page, "Generate").click().run()
    page = wait_for(page, generate.TASK_KEY)
    assert not page.error
    parameters = [image_files.read_parameters(path) for path in sorted((tmp_path / "out").rglob("image_*.png"))]
    assert [(p["prompt"], p["seed"], p["sampler"]) for p in parameters] == [
        ("a red <toy>", 7, "heun"),
        ("a red <toy>", 8, "heun"),
    ]
    assert parameters[0]["textual_inversion_weight"] == [str(embedding_file)]
    page.text_area(key="prompt").set_value("another")
    page.multiselect(key="embeddings").unselect("<toy>")
    page.selectbox(key=options.widget_key("sampler")).set_value("euler").run()
    assert len(use_parameters_buttons(page)) == 2
    use_parameters_buttons(page)[0].click().run()
    assert page.text_area(key="prompt").value == "a red <toy>"
    assert page.selectbox(key=options.widget_key("sampler")).value == "heun"
    assert page.number_input(key=options.widget_key("seed")).value == 8
    assert page.multiselect(key="embeddings").value == ["<toy>"]
    assert not page.exception


def test_parameters_with_an_init_image_are_used_again(
    app: Callable[[str], AppTest], workshop: Workshop, tmp_path: Path
) -> None:
    folder = tmp_path / "out" / "session"
    init_image = str(workshop.folder / "images" / "0.png")
    config = workshop.config(
        sampling={
            "task": "img2img",
            "img": [init_image],
            "strength": 0.5,
            "prompt": "a cat",
            "save_path": str(folder),
        }
    )
    generate_jobs.generate(config).wait(120)
    page = app("generate")
    page.session_state["session_id"] = "session"
    page.run()
    use_parameters_buttons(page)[0].click().run()
    assert (page.radio(key="task").value, page.slider(key="strength").value) == ("img2img", 0.5)
    button(page, "Generate").click().run()
    page = wait_for(page, generate.TASK_KEY)
    assert not page.error
    assert not page.exception
    first, second = (image_files.read_parameters(path) for path in sorted(folder.glob("image_*.png")))
    assert second == first


def test_missing_embeddings_of_used_parameters_are_named(
    app: Callable[[str], AppTest], embedding_file: Path, tmp_path: Path
) -> None:
    page = app("generate")
    page.session_state["requested embeddings"] = ["gone.ckpt", str(embedding_file)]
    page.run()
    assert page.multiselect(key="embeddings").value == ["<toy>"]
    assert [plain.unescape(each.value) for each in page.warning] == [
        "The embedding file gone.ckpt of these parameters is missing; upload it below or train it again."
    ]


def test_parameters_with_a_chosen_token_are_used_again(app: Callable[[str], AppTest], embedding_file: Path) -> None:
    page = app("generate")
    page.session_state["requested embeddings"] = [f"{embedding_file}=<hat>"]
    page.run()
    assert page.multiselect(key="embeddings").value == [f"<hat> ({embedding_file})"]
    assert page.button_group(key="token buttons").options[0].content == plain.escape("<hat>")
    page.run()
    assert page.multiselect(key="embeddings").value == [f"<hat> ({embedding_file})"]
    assert not page.warning
    assert not page.exception


def test_added_embeddings_are_selected_together(app: Callable[[str], AppTest], embedding_file: Path) -> None:
    content = embedding_file.with_name("hat.safetensors")
    other = dataclasses.replace(embedding_io.load(embedding_file), placeholder_token="<hat>")
    embedding_io.save(other, content)
    page = app("generate")
    page.session_state["new embeddings"] = [embedding_file, content]
    page.run()
    assert sorted(page.multiselect(key="embeddings").value) == ["<hat>", "<toy>"]


def test_lora_files_are_merged_and_used_again(
    app: Callable[[str], AppTest], workshop: Workshop, tmp_path: Path
) -> None:
    layer = "lora_unet_conv_in"
    width, channels = workshop.config().model.unet.model_channels, workshop.config().model.unet.in_channels
    factors = {"lora_down.weight": np.ones((1, channels, 3, 3)), "lora_up.weight": np.ones((width, 1, 1, 1))}
    save_file(
        {f"{layer}.{key}": array.astype(np.float32) for key, array in factors.items()}, tmp_path / "a.safetensors"
    )
    page = app("generate")
    page.text_area(key="prompt").set_value("a cat")
    page.text_area(key=options.widget_key("lora_weight")).set_value(f"\n {tmp_path}/missing.safetensors:0.5\n")
    button(page, "Generate").click().run()
    assert "missing.safetensors does not exist" in plain.unescape(page.error[0].value)
    page.text_area(key=options.widget_key("lora_weight")).set_value(f"{tmp_path}/a.safetensors:0.5")
    button(page, "Generate").click().run()
    page = wait_for(page, generate.TASK_KEY)
    assert not page.error
    (image,) = sorted((tmp_path / "out").rglob("image_*.png"))
    assert image_files.read_parameters(image)["lora_weight"] == [f"{tmp_path}/a.safetensors:0.5"]
    page.text_area(key=options.widget_key("lora_weight")).set_value("").run()
    use_parameters_buttons(page)[0].click().run()
    assert page.text_area(key=options.widget_key("lora_weight")).value == f"{tmp_path}/a.safetensors:0.5"
    assert not page.exception
