"""The page Generate: its first screen, messages, progress and gallery."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from streamlit.testing.v1 import AppTest

from demo.app import generate, init_inputs, main_options, mask_brush, messages, options, plain, task_progress
from demo.app.app_dirs import AppDirs
from demo.app.server.generate_jobs import TaskProgress
from demo.app.server.worker import Worker
from demo.sampling import VERSION2SPECS
from gm import config as configuration
from gm.config import SamplingConfig
from gm.embeddings import io as embedding_io
from gm.errors import UserError
from gm.sampling import image_files, resolution
from tests.demo.server.test_foreign_parameters import INFOTEXT, png
from tests.project import Workshop

BROWSER = "1" * 16


def button(app: AppTest, label: str) -> Any:
    return next(each for each in app.button if each.label == label)


def number(app: AppTest, name: str) -> Any:
    return app.number_input(key=options.widget_key(name))


@pytest.fixture
def page(app: Callable[[str], AppTest]) -> AppTest:
    opened = app("generate")
    opened.session_state["session_id"] = BROWSER
    return opened.run()


def save_images(folder: Path, count: int) -> list[Path]:
    """Write images with parameters as a browser has generated them."""
    folder = folder / "out" / BROWSER
    folder.mkdir(parents=True)
    pixels = np.zeros((8, 8, 3), np.uint8)
    shared = {"negative_prompt": "dog", "sample_step": 5, "sampler": "heun", "batch_size": 4}
    parameters = [{"prompt": f"cat {k}", "seed": k, **shared} for k in range(count)]
    return [image_files.save(pixels, each, folder, "image", f"cat {k}\nSeed: {k}") for k, each in enumerate(parameters)]


def test_sizes_show_the_default_and_have_presets_and_swap(page: AppTest) -> None:
    assert [number(page, name).proto.placeholder for name in ("width", "height")] == ["16", "16"]
    page.selectbox(key="size preset").set_value("24×16").run()
    assert (number(page, "width").value, number(page, "height").value) == (24, 16)
    assert page.selectbox(key="size preset").value is None
    page.button(key="swap size").click().run()
    assert (number(page, "width").value, number(page, "height").value) == (16, 24)
    page.radio(key="task").set_value("img2img").run()
    assert number(page, "width").proto.placeholder == "auto"  # the init image decides
    assert not page.exception


def test_size_presets_fit_each_model() -> None:
    for spec in VERSION2SPECS.values():
        model = configuration.load(spec["config"]).model
        sizes = main_options.presets(model)
        assert next(iter(sizes.values())) == (model.resolution, model.resolution)
        for width, height in sizes.values():
            resolution.from_options(SamplingConfig(width=width, height=height), model)


@pytest.mark.parametrize(
    ("count", "size", "rows", "columns"), [(1, 1, 1, 1), (4, 1, 2, 2), (3, 2, 2, 3), (5, 1, 1, 5), (2, 4, 2, 4)]
)
def test_batches_make_a_grid_near_a_square(count: int, size: int, rows: int, columns: int) -> None:
    values = {"num_cols": count, "batch_size": size, "seed": 7, "width": None, "height": None}
    sampling = main_options.to_sampling(values)
    assert (sampling["num_rows"], sampling["num_cols"], sampling["batch_size"]) == (rows, columns, size)
    assert sampling["seed"] == 7


def test_random_seeds_are_in_the_images_and_at_hand(page: AppTest, tmp_path: Path) -> None:
    page.text_area(key="prompt").set_value("a cat")
    page.button(key="random seed").click().run()
    assert number(page, "seed").value == -1
    number(page, "batch_size").set_value(2)
    button(page, "Generate").click().run()
    assert page.session_state[generate.TASK_KEY].wait(120)
    page.run()
    assert not page.error
    images = sorted((tmp_path / "out").rglob("image_*.png"))
    seeds = [image_files.read_parameters(path)["seed"] for path in images]
    assert seeds == [seeds[0], seeds[0] + 1]
    page.button(key="last seed button").click().run()
    assert number(page, "seed").value == seeds[0]


def test_an_error_stays_until_its_cause_is_gone(page: AppTest) -> None:
    button(page, "Generate").click().run()
    assert '"Prompt" is empty' in plain.unescape(page.error[0].value)
    page.run()
    assert len(page.error) == 1
    page.text_area(key="prompt").set_value("a cat").run()
    assert not page.error
    page.text_area(key="prompt").set_value("").run()
    assert not page.error


def test_a_failed_task_is_shown_until_something_is_changed(page: AppTest) -> None:
    def fail() -> Any:
        raise UserError("--guidance_scale is too high")
        yield

    task = Worker().submit("", fail)
    assert task.wait(10)
    page.session_state[generate.TASK_KEY] = task
    page.run()
    assert '"CFG scale" is too high' in plain.unescape(page.error[0].value)
    number(page, "guidance_scale").set_value(3.0).run()
    assert not page.error


def test_messages_name_boxes_and_files_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    state = {messages.NAMES_KEY: {str(tmp_path / "out" / "me" / "init_images" / "3fa.png"): "holiday photo.png"}}
    monkeypatch.setattr(messages.st, "session_state", state)
    dirs = AppDirs(tmp_path / "runs", tmp_path / "out", tmp_path / "weights")
    for text, shown in {
        f"--img {tmp_path}/out/me/init_images/3fa.png is small": '"Init images" holiday photo.png is small',
        f"{tmp_path}/runs/a/b_5_ti.ckpt: damaged": "b_5_ti.ckpt: damaged",
        f"--save_path {tmp_path}/out/me is full": "save path me is full",
        "--vae /home/me/vae.ckpt is missing": '"VAE" /home/me/vae.ckpt is missing',  # as it was typed
        "--sd_xl_base_ratios 9 and a--b": "sd xl base ratios 9 and a--b",
        f"{tmp_path}/outside is left": f"{tmp_path}/outside is left",
    }.items():
        assert messages.for_page(text, dirs) == shown


def test_progress_is_told_by_image_and_time() -> None:
    steps = [TaskProgress(k, 40, image=1 + k // 10, num_images=4, time=k * 0.5) for k in range(1, 13)]
    assert task_progress.describe(steps) == "Image 2 of 4, about 14 s left"
    assert task_progress.describe([TaskProgress(1, 40)]) == "Step 1 of 40"
    assert [task_progress.duration(each) for each in (0.2, 99, 150, 7300)] == ["1 s", "99 s", "2 min", "2 h 2 min"]


def test_running_tasks_of_several_images_can_be_skipped(page: AppTest) -> None:
    task = Worker().submit("", lambda: iter([TaskProgress(1, 8, num_images=2), TaskProgress(2, 8, num_images=2)]))
    assert task.wait(10)
    task.state = "running"
    page.session_state[generate.TASK_KEY] = task
    page.run()
    button(page, "Skip").click().run()
    assert task.skip_requested.is_set()
    assert task.state == "running"
    task.state = "done"


def shown_images(page: AppTest) -> list[Path]:
    return [Path(each.key.removeprefix("menu ")) for each in page.button if (each.key or "").startswith("menu ")]


def test_gallery_has_pages_and_deletes(page: AppTest, tmp_path: Path) -> None:
    paths = save_images(tmp_path, 14)
    page.run()
    assert shown_images(page) == paths[:1:-1]
    page.button(key="older images").click().run()
    assert shown_images(page) == [paths[1], paths[0]]
    for path in paths[:2]:
        page.button(key=f"menu {path}").click().run()
        page.button(key=f"delete {path}").click().run()
    assert not paths[0].exists()
    assert not paths[1].exists()
    assert shown_images(page) == paths[:1:-1]  # the page that is left
    page.button(key="pack images").click().run()
    assert not page.error
    assert not page.exception


def test_reused_parameters_are_shown_until_closed(page: AppTest, tmp_path: Path) -> None:
    (path,) = save_images(tmp_path, 1)
    page.run()
    page.button(key=f"use parameters {path}").click().run()
    (note,) = [plain.unescape(each.value) for each in page.caption if "Filled in" in each.value]
    assert note == (
        "Filled in from image_00000.png: Sampler: heun · Steps: 5 · Seed: 0 · Prompt: cat 0 · Negative prompt: dog"
    )
    assert (number(page, "num_cols").value, number(page, "batch_size").value) == (1, 1)  # of this image alone
    page.button(key="close note").click().run()
    assert not any("Filled in" in each.value for each in page.caption)


def test_images_are_sent_to_inpaint(page: AppTest, tmp_path: Path) -> None:
    (path,) = save_images(tmp_path, 1)
    page.run()
    page.button(key=f"menu {path}").click().run()
    assert [each.value for each in page.code] == ["cat 0\nSeed: 0"]
    page.button(key=f"inpaint {path}").click().run()
    assert not page.exception
    assert (page.radio(key="task").value, page.text_area(key="prompt").value) == ("inpaint", "cat 0")
    assert page.session_state["previous inputs"] == {"img": [str(path)], "mask": None}
    button(page, "Generate").click().run()
    assert '"Task" inpaint needs "Mask"' in plain.unescape(page.error[0].value)


def drop(content: bytes, folder: str) -> None:
    """Streamlit script that takes a dropped image."""
    from pathlib import Path

    from demo.app import reuse
    from demo.app.app_dirs import AppDirs

    reuse.apply_content(content, "a.png", AppDirs(Path(folder) / "runs", Path(folder) / "out"))
    reuse.show_note()


def test_dropped_images_fill_the_page_in(tmp_path: Path) -> None:
    page = AppTest.from_function(drop, args=(png(parameters=INFOTEXT), str(tmp_path)))
    page.session_state["session_id"] = BROWSER
    page.run()
    assert page.session_state["prompt"] == "a (red:1.2) cat,\non a table"
    assert page.session_state[options.widget_key("sampler")] == "dpmpp_2m"
    assert page.session_state[options.widget_key("width")] == 512
    notes = [plain.unescape(each.value) for each in page.caption]
    assert notes[0].startswith("Filled in from a.png (AUTOMATIC1111): ")
    assert notes[1] == "Not used: LoRA: detail:0.5 · Model: dream, shaper · Clip skip: 2"


def test_dropped_images_cannot_show_files_of_the_machine(tmp_path: Path) -> None:
    own = tmp_path / "out" / BROWSER / "init_images" / "a.png"
    parameters = {"prompt": "a cat", "img": ["/etc/secret.png", str(own), "a\0b"], "mask": f"{own}/../../../x.png"}
    page = AppTest.from_function(drop, args=(png(generation_parameters=json.dumps(parameters)), str(tmp_path)))
    page.session_state["session_id"] = BROWSER
    page.run()
    assert not page.exception
    assert page.session_state["previous inputs"] == {"img": [str(own)], "mask": None}


def test_dropped_images_without_parameters_change_nothing(tmp_path: Path) -> None:
    page = AppTest.from_function(drop, args=(png(), str(tmp_path)))
    page.session_state["prompt"] = "mine"
    page.run()
    assert page.session_state["prompt"] == "mine"
    assert "a.png holds no generation parameters" in page.session_state["dropped image error"]


def test_checkpoints_are_chosen_from_a_list_or_typed(page: AppTest, workshop: Workshop) -> None:
    choice = page.selectbox(key="choice of weight of smallest")
    assert choice.options == ["weights.ckpt", "tiny_sd_xl_base.safetensors"]
    choice.select_index(1).run()
    assert page.text_input(key="weight of smallest").value.endswith("checkpoints/tiny_sd_xl_base.safetensors")
    page.text_input(key="weight of smallest").set_value("other.ckpt").run()
    assert page.selectbox(key="choice of weight of smallest").value == "other.ckpt"
    page.selectbox(key="choice of weight of smallest").select_index(0).run()
    assert page.text_input(key="weight of smallest").value == workshop.config().run.weight
    assert page.selectbox(key="choice of option vae").options == ["Automatic"]
    assert not page.exception


def test_a_run_is_one_entry_whose_steps_are_behind_a_menu(embedding_file: Path, page: AppTest) -> None:
    run = embedding_file.parent / "toy"
    run.mkdir()
    embedding = embedding_io.load(embedding_file)
    for step in ("3", "best"):
        embedding_io.save(embedding, run / f"smallest_{step}_ti.ckpt")
    embedding_file.unlink()
    page.run()
    assert page.multiselect(key="embeddings").options == ["<toy>"]
    page.multiselect(key="embeddings").select("<toy>").run()
    (menu,) = [each for each in page.radio if each.label == "Step"]
    assert menu.options == ["best by validation loss", "step 3"]
    menu.set_value("3").run()
    assert page.multiselect(key="embeddings").value == ["<toy>, step 3 (toy)"]
    assert not page.exception
    (menu,) = [each for each in page.radio if each.label == "Step"]
    menu.set_value("best").run()
    assert page.multiselect(key="embeddings").value == ["<toy>"]


def test_painted_masks_have_the_size_of_their_image(tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    Image.new("RGB", (40, 20), "green").save(image)
    painted = Image.new("RGB", (20, 10))
    painted.paste("white", (0, 0, 10, 10))
    content = io.BytesIO()
    painted.save(content, "PNG")
    path = init_inputs.store_mask(content.getvalue(), image, tmp_path / "init")
    assert path is not None
    mask = np.asarray(Image.open(path))
    assert mask.shape == (20, 40)
    assert (mask[:, :16] == 255).all()
    assert (mask[:, 24:] == 0).all()
    assert list((tmp_path / "init").iterdir()) == [path]
    empty = io.BytesIO()
    Image.new("RGB", (20, 10)).save(empty, "PNG")
    assert init_inputs.store_mask(empty.getvalue(), image, tmp_path / "init") is None
    with pytest.raises(UserError, match="not an image"):
        init_inputs.store_mask(b"<svg>", image, tmp_path / "init")


def test_masks_from_the_browser_are_png_or_nothing() -> None:
    url = f"data:image/png;base64,{base64.b64encode(b'PNG').decode()}"
    assert mask_brush.decode(url) == b"PNG"
    for value in (None, 5, "", "data:text/html,x", url + "!", url + "A" * 5 * 10**6):
        assert mask_brush.decode(value) is None


def test_each_image_appears_when_it_is_finished(page: AppTest, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    pixels = np.zeros((8, 8, 3), np.uint8)
    finished = image_files.save(pixels, {}, tmp_path / "elsewhere", "image")
    task = Worker().submit("", lambda: iter([TaskProgress(4, 8, num_images=2), finished]))
    assert task.wait(10)
    task.state = "running"
    page.session_state[generate.TASK_KEY] = task
    assert not page.get("imgs")
    page.run()
    assert len(page.get("imgs")) == 1
    task.state = "done"
    page.run()
    assert len(page.get("imgs")) == 1
