"""The page Generate: its boxes, messages and progress."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from demo.app import generate, main_options, messages, plain, task_progress
from demo.app.app_dirs import AppDirs
from demo.app.server.generate_jobs import TaskProgress
from demo.app.server.worker import Worker
from demo.sampling import VERSION2SPECS
from gm import config as configuration
from gm.config import SamplingConfig
from gm.embeddings import io as embedding_io
from gm.errors import UserError
from gm.sampling import image_files, resolution
from tests.demo.pages import button, number
from tests.project import Workshop


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


def test_checkpoints_are_chosen_from_a_list_or_typed(page: AppTest, workshop: Workshop) -> None:
    choice = page.selectbox(key="choice of weight of smallest")
    assert choice.options == ["weights.ckpt", "tiny_sd_v1.safetensors", "tiny_sd_xl_base.safetensors"]
    choice.select_index(2).run()
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
