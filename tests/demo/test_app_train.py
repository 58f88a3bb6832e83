"""The page Train: what is checked while typing, Advanced, a run's progress and failure, and what follows it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from streamlit.testing.v1 import AppTest

from demo.app import plain, train_options, xy_axes
from demo.app.server import training_images, training_jobs, training_process
from demo.app.server.training_record import Launch
from demo.app.sidebar import ModelSelection
from gm.config import Config, TrainingConfig
from tests.demo.test_app import button, shown
from tests.project import Workshop


def upload(page: AppTest, workshop: Workshop, tmp_path: Path, count: int = 3) -> Path:
    """Put images of the workshop into the browser's folder, as an upload does."""
    folder = tmp_path / "runs" / "app" / "images" / "mine"
    files = [(f"photo {k}.png", (workshop.folder / "images" / f"{k}.png").read_bytes()) for k in range(count)]
    training_images.add(files, folder)
    page.session_state["training images"] = str(folder)
    page.run()
    assert not page.exception
    return folder


def write_run(folder: Path, embedding_file: Path, version: str = "smallest", **options: Any) -> None:
    """Write a run that has ended after 20 steps, with the embedding files of its steps."""
    folder.mkdir(parents=True)
    options = {"placeholder_token": "<toy>", "total_step": 20, "learnable_property": "style", **options}
    Launch("c.yaml", options, 999_999_999, 1000.0, version=version).write(folder)
    records = [{"step": k, "loss": 1.0, "loss_smoothed": 1.0, "seconds": 1.0} for k in range(1, 21)]
    records += [{"step": 20, "validation_loss": 0.5}]
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    for step in ("10", "20"):
        shutil.copy(embedding_file, folder / f"smallest_{step}_ti.ckpt")
        (folder / f"smallest_{step}_ti.safetensors").write_bytes(b"safe")
    (folder / "previews").mkdir()
    for step in (0, 10, 20):
        Image.new("RGB", (16, 16), "red").save(folder / "previews" / f"step_{step}.png")


@pytest.mark.parametrize(
    ("token", "message"),
    [("cat", "is a single token already"), ("my toy", "contains white space"), ("", "the placeholder is empty")],
)
def test_the_placeholder_token_is_checked_while_typing(app: Callable[[str], AppTest], token: str, message: str) -> None:
    page = app("train")
    assert not page.error
    page.text_input(key="option placeholder token").set_value(token).run()
    assert message in shown(page.error[0])
    page.text_input(key="option placeholder token").set_value("<fine>").run()
    assert not page.error


def test_a_taken_token_and_a_long_initializer_are_named(app: Callable[[str], AppTest], embedding_file: Path) -> None:
    page = app("train")
    page.multiselect(key="embeddings").select("<toy>").run()
    page.text_input(key="option placeholder token").set_value("<TOY>").run()
    assert any("A selected embedding has the name <TOY> already" in shown(each) for each in page.caption)
    page.text_input(key="option placeholder token").set_value("<new>")
    page.text_input(key="option initializer token").set_value("a red plush bear").run()
    assert [shown(each) for each in page.warning] == [
        "a red plush bear has 4 tokens of the model; the first 2 are used, one a vector."
    ]


def test_images_are_counted_captioned_and_removed(
    app: Callable[[str], AppTest], workshop: Workshop, tmp_path: Path
) -> None:
    page = app("train")
    folder = upload(page, workshop, tmp_path, 2)
    assert "with fewer than 3 the embedding takes the background" in shown(page.warning[0])
    captions = [plain.unescape(each.value) for each in page.caption]
    assert "photo 0.png · 24×20" in captions
    box = next(each for each in page.text_area if each.label == "Caption")
    assert box.placeholder == "a photo of <my-thing>"
    box.set_value("a {} on a table").run()
    assert [image.caption for image in training_images.load(folder)] == ["a {} on a table", ""]
    assert "1 of 2 images have captions; templates for the other 1." in [shown(each) for each in page.caption]
    page.checkbox(key="option training captions of smallest").uncheck().run()
    assert not any(each.label == "Caption" for each in page.text_area)
    page.checkbox(key="option training captions of smallest").check().run()
    assert next(each for each in page.text_area if each.label == "Caption").value == "a {} on a table"
    button(page, "Remove").click().run()
    assert [image.name for image in training_images.load(folder)] == ["photo 1.png"]
    button(page, "Remove all images").click().run()
    assert any("3 to 20 images" in each.value for each in page.caption)
    assert not page.exception


def test_small_images_are_named_as_enlarged(app: Callable[[str], AppTest], workshop: Workshop, tmp_path: Path) -> None:
    page = app("train")
    upload(page, workshop, tmp_path)
    assert not page.warning
    page.number_input(key="option training resolution of smallest").set_value(24).run()
    assert "3 images here are smaller than training needs" in shown(page.warning[0])


def test_advanced_options_reach_the_run_where_they_were_changed(
    app: Callable[[str], AppTest], workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: dict[str, Any] = {}

    def start(config: str, root: Path, options: dict[str, Any], *_: str) -> training_jobs.TrainingJob:
        started.update(options)
        return training_jobs.TrainingJob(root)

    monkeypatch.setattr(training_jobs, "start", start)
    page = app("train")
    upload(page, workshop, tmp_path)
    page.selectbox(key="option training optimizer of smallest").set_value("direction").run()
    assert page.number_input(key="option learning rate of smallest, direction").value == 0.04
    page.text_input(key="option training class_word of smallest").set_value("toy")
    page.number_input(key="option training train_batch_size of smallest").set_value(2)
    page.number_input(key="option training seed of smallest").set_value(7)
    page.checkbox(key="option training random_flip of smallest").check().run()
    button(page, "Train").click().run()
    assert not page.error
    changed = {"optimizer", "class_word", "train_batch_size", "seed", "random_flip"}
    advanced = {name for group in train_options.ADVANCED.values() for name in group}
    assert set(started) & advanced == changed
    assert {name: started[name] for name in changed} == {
        "optimizer": "direction",
        "class_word": "toy",
        "train_batch_size": 2,
        "seed": 7,
        "random_flip": True,
    }
    assert started["learning_rate"] == 0.04
    page.selectbox(key="option training optimizer of smallest").set_value("adamw").run()
    rate = page.number_input(key="option learning rate of smallest").value
    assert rate == workshop.config().training.learning_rate


def test_a_run_that_cannot_be_does_not_start(app: Callable[[str], AppTest], workshop: Workshop, tmp_path: Path) -> None:
    page = app("train")
    upload(page, workshop, tmp_path)
    page.text_input(key="option placeholder token").set_value("cat").run()
    button(page, "Train").click().run()
    assert "is a single token already" in shown(page.error[-1])
    assert training_jobs.all_jobs(tmp_path / "runs" / "app") == []


def test_try_it_fills_in_generate(app: Callable[[str], AppTest], embedding_file: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "app" / "toy", embedding_file, class_word="cat")
    embedding_file.unlink()
    page = app("train")
    page.session_state["prompt"] = "a castle"
    button(page, "Try it").click().run()
    assert not page.exception
    assert page.session_state["open page"] == "generate"
    assert page.session_state["prompt"] == "a picture in the style of <toy> cat"
    assert "Your prompt was: a castle" in [shown(each) for each in page.toast]
    (name,) = page.session_state["embeddings"]
    assert "smallest_20_ti.ckpt" in name or name == "<toy>"
    del page.session_state["open page"]
    page.session_state["prompt"] = "my own <toy>"
    button(page, "Try it").click().run()
    assert page.session_state["prompt"] == "my own <toy>"


def test_a_run_shows_all_its_sample_images_and_downloads(
    app: Callable[[str], AppTest], embedding_file: Path, tmp_path: Path
) -> None:
    write_run(tmp_path / "runs" / "app" / "toy", embedding_file)
    page = app("train")
    assert "Validation loss 0.5000; lowest 0.5000 at step 20." in [each.value for each in page.caption]
    assert any(each.value == "**Sample images over the steps**" for each in page.markdown)
    assert len(page.get("imgs")) == 4  # the three of the strip, and the last one larger
    labels = [each.proto.label for each in page.get("download_button")]
    assert labels.count(".safetensors") == labels.count(".ckpt") == 2
    button(page, "Compare steps").click().run()
    assert page.session_state["open page"] == "compare"
    assert page.session_state["option comparison"] == "Steps of a run"
    assert page.session_state["option compared run"] == "toy"


def test_a_failure_is_one_text_with_the_labels_of_the_page(app: Callable[[str], AppTest], tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "app" / "toy"
    folder.mkdir(parents=True)
    Launch("c.yaml", {"placeholder_token": "<toy>", "total_step": 20}, 999_999_999, 1000.0).write(folder)
    console = folder / training_process.CONSOLE
    console.write_text("error: --train_batch_size 9 is more than the images; lower it ![x](y)")
    page = app("train")
    assert shown(page.error[0]) == "Batch size 9 is more than the images; lower it ![x](y)"
    assert "](y)" not in page.error[0].value


def test_every_option_under_advanced_exists_and_has_a_label_of_its_own() -> None:
    names = [name for group in train_options.ADVANCED.values() for name in group]
    assert len(names) == len(set(names))
    assert {"optimizer", "lr_scheduler", "train_batch_size", "gradient_accumulation_steps"} <= set(names)
    assert {"seed", "resolution", "captions", "class_word"} <= set(names)
    assert len(set(train_options.LABELS.values())) == len(train_options.LABELS)
    assert len(set(xy_axes.AXES)) == 11


@pytest.mark.parametrize(
    ("configured", "optimizer", "rate"),
    [
        (None, "direction", 0.04),
        (0.02, "direction", 0.02),
        (0.02, "adamw", 0.02),  # it depends on the model, which the config describes
        (None, "adamw", 1e-3),
        (0.02, "prodigy", 1.0),
    ],
)
def test_an_optimizer_has_its_usual_rate(
    configured: float | None, optimizer: str, rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config(training=TrainingConfig(optimizer="direction", learning_rate=configured))
    monkeypatch.setattr(train_options, "value", lambda name, selection: optimizer)
    monkeypatch.setattr(train_options, "persistent_key", lambda key, default, accepts: default)
    assert train_options._learning_rate_key(ModelSelection(config, "", {})) == rate
