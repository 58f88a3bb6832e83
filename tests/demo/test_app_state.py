"""What a browser typed and made is there again after a reload, and no other browser sees it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin
from streamlit.testing.v1 import AppTest

from demo.app import browser, generate, options, plain
from demo.app.server import training_jobs
from demo.app.server.training_record import Launch
from demo.app.server.worker import Worker
from tests.demo.conftest import script
from tests.project import Workshop

FIRST, SECOND = "1" * 16, "2" * 16


def open_as(browser_id: str, workshop: Workshop, folder: Path, name: str = "generate") -> AppTest:
    """Open a page as a new session of a browser."""
    arguments = (name, str(workshop.yaml), workshop.config().run.weight, str(folder))
    page = AppTest.from_function(script, args=arguments, default_timeout=60)
    page.session_state["session_id"] = browser_id
    page.run()
    assert not page.exception
    return page


def test_everything_typed_is_there_after_a_reload(workshop: Workshop, tmp_path: Path, embedding_file: Path) -> None:
    page = open_as(FIRST, workshop, tmp_path)
    page.multiselect(key="embeddings").select("<toy>").run()
    page.text_area(key="prompt").set_value("a red <toy>")
    page.text_input(key="negative_prompt").set_value("grey")
    page.number_input(key=options.widget_key("sample_step")).set_value(7)
    page.selectbox(key=options.widget_key("sampler")).set_value("heun")
    page.radio(key="task").set_value("img2img").run()
    page.slider(key="strength").set_value(0.25).run()
    page.session_state["page"] = "train"
    page.run()
    page.text_input(key="option placeholder token").set_value("<new>").run()
    again = open_as(FIRST, workshop, tmp_path)
    assert (again.text_area(key="prompt").value, again.text_input(key="negative_prompt").value) == (
        "a red <toy>",
        "grey",
    )
    assert again.number_input(key=options.widget_key("sample_step")).value == 7
    assert again.selectbox(key=options.widget_key("sampler")).value == "heun"
    assert (again.radio(key="task").value, again.slider(key="strength").value) == ("img2img", 0.25)
    assert again.multiselect(key="embeddings").value == ["<toy>"]
    assert open_as(FIRST, workshop, tmp_path, "train").text_input(key="option placeholder token").value == "<new>"
    assert not again.warning
    other = open_as(SECOND, workshop, tmp_path)
    assert (other.text_area(key="prompt").value, other.multiselect(key="embeddings").value) == ("", [])


def test_what_streamlit_drops_on_another_page_comes_back(workshop: Workshop, tmp_path: Path) -> None:
    """A fragment that runs alone lets Streamlit drop the widgets that are not on its page."""
    page = open_as(FIRST, workshop, tmp_path)
    page.text_area(key="prompt").set_value("a cat").run()
    page.session_state["page"] = "train"
    page.run()
    del page.session_state["prompt"]
    page.session_state["page"] = "generate"
    page.run()
    assert page.text_area(key="prompt").value == "a cat"


def test_damaged_values_become_the_defaults(workshop: Workshop, tmp_path: Path) -> None:
    damaged = {
        options.widget_key("sample_step"): 10**9,
        options.widget_key("sampler"): 5,
        options.widget_key("vae_tiling"): "yes",
        options.widget_key("height"): "high",
        options.widget_key("guidance_scale"): float("inf"),
        "strength": 9,
        "task": "paint",
        "version": "gone",
        "prompt": 5,
        "weight of smallest": ["a"],
        "compared embedding": "gone",
        "embeddings": None,
        "previous inputs": {"img": ["\0", "x" * 5000]},
        "training run": "gone",
        "option learning rate of smallest": -1,
    }
    browser._store().get(FIRST, tmp_path / "runs" / "app" / "pages").update(damaged)
    page = open_as(FIRST, workshop, tmp_path)
    assert page.number_input(key=options.widget_key("sample_step")).value == 3
    assert page.radio(key="task").value == "txt2img"
    assert page.selectbox(key="version").value == "smallest"
    page.radio(key="task").set_value("img2img").run()
    assert page.slider(key="strength").value == workshop.config().sampling.strength
    open_as(FIRST, workshop, tmp_path, "train")


def test_a_running_task_is_found_again_by_its_browser_alone(workshop: Workshop, tmp_path: Path) -> None:
    page = open_as(FIRST, workshop, tmp_path)
    assert not any(each.label == "Cancel" for each in page.button)
    task = Worker().submit("a cat", lambda: iter([]))
    assert task.wait(10)
    task.state = "queued"
    browser._store().get(FIRST, tmp_path / "runs" / "app" / "pages").tasks[generate.TASK_KEY] = task
    assert any(each.label == "Cancel" for each in open_as(FIRST, workshop, tmp_path).button)
    assert not any(each.label == "Cancel" for each in open_as(SECOND, workshop, tmp_path).button)


def test_images_are_found_again_by_their_browser_alone(workshop: Workshop, tmp_path: Path) -> None:
    folder = tmp_path / "out" / FIRST
    folder.mkdir(parents=True)
    image = Image.open(workshop.folder / "images" / "0.png")
    image.save(folder / "image_00000.png")
    assert len(open_as(FIRST, workshop, tmp_path).error) == 1  # an image without parameters
    assert not open_as(SECOND, workshop, tmp_path).error


def test_runs_and_uploads_of_others_are_not_listed(workshop: Workshop, tmp_path: Path, embedding_file: Path) -> None:
    run = tmp_path / "runs" / "app" / "their-run"
    upload = tmp_path / "runs" / "uploaded" / "browsers" / FIRST
    for folder in (run, upload):
        folder.mkdir(parents=True)
    Launch("c.yaml", {"total_step": 5}, 999_999_999, 1.0, owner=FIRST).write(run)
    (run / "smallest_5_ti.ckpt").write_bytes(embedding_file.read_bytes())
    embedding_file.rename(upload / "mine.ckpt")
    mine = open_as(FIRST, workshop, tmp_path, "train")
    assert mine.selectbox(key="training run").options == ["their-run"]
    assert len(mine.multiselect(key="embeddings").options) == 2
    other = open_as(SECOND, workshop, tmp_path, "train")
    assert not [each for each in other.selectbox if each.key == "training run"]
    assert other.multiselect(key="embeddings").options == []
    mine.checkbox(key="share their-run").check().run()
    assert training_jobs.TrainingJob(run).launch.shared
    shared = open_as(SECOND, workshop, tmp_path, "train")
    assert shared.selectbox(key="training run").options == ["their-run"]
    assert shared.multiselect(key="embeddings").options == ["<toy>"]


def test_damaged_files_are_one_entry_each(workshop: Workshop, tmp_path: Path) -> None:
    folder = tmp_path / "out" / FIRST
    folder.mkdir(parents=True)
    image = Image.open(workshop.folder / "images" / "0.png")
    for number, parameters in enumerate(["{}", "[" * 100_000, "5", '{"prompt": ["![x](http://evil.example)"]}']):
        text = {"generation_parameters": parameters}
        _save(image, folder / f"image_{number:05d}.png", text)
    (folder / "image_00004.png").write_bytes(b"\x89PNG\r\n\x1a\n damaged")
    (folder / "image_00005.png").mkdir()
    (tmp_path / "runs" / "app" / "bad").mkdir(parents=True)
    (tmp_path / "runs" / "app" / "bad" / "job.json").write_text("{")
    page = open_as(FIRST, workshop, tmp_path)
    assert len(page.error) == 3
    assert all("damaged" in each.value or "holds no" in each.value for each in page.error)
    assert not any("](http" in each.value for each in page.caption)
    train = open_as(FIRST, workshop, tmp_path, "train")
    assert "the record job.json of the run bad is damaged" in plain.unescape(train.error[0].value)


def test_damaged_parameters_are_named_and_change_nothing(workshop: Workshop, tmp_path: Path) -> None:
    folder = tmp_path / "out" / FIRST
    folder.mkdir(parents=True)
    values = '{"prompt": "a cat", "sampler": "eulr", "sample_step": "many", "guidance_scale": 3, "strength": 7, '
    values += '"height": 4000000000, "img": [1], "mask": {}, "textual_inversion_weight": "all"}'
    _save(Image.new("RGB", (8, 8)), folder / "image_00000.png", {"generation_parameters": values})
    page = open_as(FIRST, workshop, tmp_path)
    next(each for each in page.button if (each.key or "").startswith("use parameters")).click().run()
    assert not page.exception
    assert page.text_area(key="prompt").value == "a cat"
    assert page.number_input(key=options.widget_key("guidance_scale")).value == 3.0
    assert page.number_input(key=options.widget_key("sample_step")).value == 3
    (toast,) = page.toast
    assert {"Steps", "Sampler", "Height", "strength"} <= set(plain.unescape(toast.value).partition(": ")[2].split(", "))


def test_weights_that_are_no_path_of_a_file_are_one_line(workshop: Workshop, tmp_path: Path) -> None:
    page = open_as(FIRST, workshop, tmp_path)
    for weight, message in (
        ("x" * 300, "is longer than a path can be"),
        ("a\0b", "has a null character"),
        ("/dev/zero", "/dev/zero is a device; give a file or folder"),
    ):
        page.text_input(key="weight of smallest").set_value(weight).run()
        assert not page.exception
        assert message in plain.unescape(page.error[0].value)
    page.text_input(key="weight of smallest").set_value("").run()
    page.text_input(key=options.widget_key("vae")).set_value("/dev/zero").run()
    assert '"VAE" /dev/zero is a device' in plain.unescape(page.error[0].value)
    page.text_input(key=options.widget_key("vae")).set_value("").run()
    assert not page.error


def _save(image: Image.Image, path: Path, text: dict[str, Any]) -> None:
    info = PngImagePlugin.PngInfo()
    for key, value in text.items():
        info.add_itxt(key, value)
    image.save(path, pnginfo=info)
