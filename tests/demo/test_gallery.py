"""The gallery of the page Generate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from streamlit.testing.v1 import AppTest

from demo.app import generate, plain
from demo.app.server.generate_jobs import TaskProgress
from demo.app.server.worker import Worker
from gm.sampling import image_files
from tests.demo.pages import BROWSER, button, number


def save_images(folder: Path, count: int) -> list[Path]:
    """Write images with parameters as a browser has generated them."""
    folder = folder / "out" / BROWSER
    folder.mkdir(parents=True)
    pixels = np.zeros((8, 8, 3), np.uint8)
    shared = {"negative_prompt": "dog", "sample_step": 5, "sampler": "heun", "batch_size": 4}
    parameters = [{"prompt": f"cat {k}", "seed": k, **shared} for k in range(count)]
    return [image_files.save(pixels, each, folder, "image", f"cat {k}\nSeed: {k}") for k, each in enumerate(parameters)]


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
