"""Training options that do nothing beside others are named."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from gm import config as configuration
from gm.training import lr_schedule, option_checks, setup
from tests.project import Workshop

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted((ROOT / "configs" / "training").glob("*.yaml"))


def sentences(num_updates: int = 100, has_masks: bool = True, has_captions: bool = True, **sections: Any) -> list[str]:
    config = configuration.load(None, sections)
    return list(option_checks.ineffective_options(config, num_updates, has_masks, has_captions))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_configs_have_no_such_option(path: Path) -> None:
    config = configuration.load(path)
    assert list(option_checks.ineffective_options(config, config.training.total_step)) == []


@pytest.mark.parametrize(
    ("sections", "name", "needs"),
    [
        ({"training": {"lr_num_cycles": 3}}, "lr_num_cycles 3", "--lr_scheduler cosine_with_restarts"),
        ({"training": {"lr_power": 2.0}}, "lr_power 2.0", "--lr_scheduler polynomial"),
        ({"training": {"kappa": 0.5}}, "kappa 0.5", "--optimizer direction"),
        ({"training": {"beta": 0.9}}, "beta 0.9", "--optimizer direction"),
        ({"training": {"token_scale": "mean"}}, "token_scale mean", "--optimizer direction"),
        ({"training": {"infer_prompt": "a {}"}}, "infer_prompt a {}", "--infer_during_train"),
        ({"training": {"validation_prompts": ["a {}", "b"]}}, "validation_prompts a {} b", "--infer_during_train"),
        ({"training": {"distributed_timeout": 5}}, "distributed_timeout 5", "--is_parallel"),
        ({"loss": {"huber_c": 0.2}}, "huber_c 0.2", "--loss_type huber"),
        ({"loss": {"negative_guidance": 2.0}}, "negative_guidance 2.0", "a negative concept"),
        ({"data": {"bucket_reso_steps": 32}}, "bucket_reso_steps 32", "--enable_bucket"),
        ({"data": {"unmasked_weight": 0.1, "masks": False}}, "unmasked_weight 0.1", "--masks"),
        ({"data": {"template_probability": 0.1, "captions": False}}, "template_probability 0.1", "--captions"),
    ],
)
def test_option_without_the_one_that_reads_it(sections: dict[str, Any], name: str, needs: str) -> None:
    assert sentences(**sections) == [f"--{name} has no effect without {needs}"]


def test_options_with_the_one_that_reads_them() -> None:
    training = {"infer_during_train": True, "infer_prompt": "a {}", "is_parallel": True, "distributed_timeout": 5}
    data = {"enable_bucket": True, "bucket_reso_steps": 32, "unmasked_weight": 0.1, "template_probability": 0.1}
    negative = [{}, {"placeholder_token": "<n>", "negative": True}]
    loss = {"loss_type": "huber", "huber_c": 0.2, "negative_guidance": 2.0}
    assert sentences(training=training, data=data, loss=loss, concepts=negative) == []
    for scheduler, name in (("cosine_with_restarts", "lr_num_cycles"), ("polynomial", "lr_power")):
        assert sentences(training={"lr_scheduler": scheduler, name: 2}) == []


@pytest.mark.parametrize(
    "rates",
    [{"learning_rate": 0}, {"learning_rate_clip_l": 0, "learning_rate_clip_g": 0}],
)
def test_a_learning_rate_of_0(rates: dict[str, float]) -> None:
    assert sentences(training=rates) == ["the learning rate is 0: no vector is trained"]
    assert sentences(training={"learning_rate": 0, "learning_rate_clip_g": 1e-3}) == []


def test_a_learning_rate_that_both_encoders_replace() -> None:
    (sentence,) = sentences(training={"learning_rate": 0.5, "learning_rate_clip_l": 0.1, "learning_rate_clip_g": 0.2})
    assert sentence.startswith("--learning_rate 0.5 has no effect: --learning_rate_clip_l and --learning_rate_clip_g")


@pytest.mark.parametrize("scheduler", ["constant", "cosine", "one_cycle"])
def test_a_warm_up_longer_than_the_run(scheduler: str) -> None:
    for warmup, expected in ((99, 0), (100, 1), (500, 1)):
        training = {"lr_warmup_steps": warmup, "lr_scheduler": scheduler, "total_step": 400}
        found = sentences(100, training=training | {"gradient_accumulation_steps": 4})
        assert len(found) == expected
        if expected:
            assert found[0].startswith(
                f"--lr_warmup_steps {warmup} is not less than the run's 100 updates (--total_step 400 in groups of 4)"
            )


def test_one_cycle_over_one_update_has_no_learning_rate() -> None:
    training = {"lr_scheduler": "one_cycle"}
    config = configuration.load(None, {"training": training}).training
    assert lr_schedule.factor(0, 1, config) < 1e-5
    assert sentences(1, training=training) == [
        "--lr_scheduler one_cycle over 1 updates reaches 4e-06 of the learning rate at most; use another schedule, or "
        "more steps"
    ]
    for updates in (2, 3, 7, 100):
        assert sentences(updates, training=training) == []


@pytest.mark.parametrize("scheduler", ["constant", "linear", "cosine", "cosine_with_restarts", "polynomial"])
def test_the_other_schedules_begin_at_the_peak(scheduler: str) -> None:
    assert sentences(1, training={"lr_scheduler": scheduler}) == []


def test_as_many_cycles_as_updates_are_a_constant() -> None:
    training = {"lr_scheduler": "cosine_with_restarts", "lr_num_cycles": 10}
    config = configuration.load(None, {"training": training}).training
    assert {lr_schedule.factor(update, 10, config) for update in range(10)} == {1.0}
    assert sentences(10, training=training) == [
        "--lr_num_cycles 10 is a cycle for every update of 10: the learning rate never falls"
    ]
    assert sentences(30, training=training) == []


def test_more_accumulation_than_steps() -> None:
    (sentence,) = sentences(1, training={"gradient_accumulation_steps": 100, "total_step": 10})
    assert sentence.startswith("--gradient_accumulation_steps 100 is more than --total_step 10: there is a single")


def test_probabilities_that_leave_nothing() -> None:
    assert sentences(data={"caption_dropout_rate": 1}) == [
        "--caption_dropout_rate 1 trains on the placeholder token alone: no template or caption is used"
    ]
    assert sentences(data={"template_probability": 1}) == [
        "--template_probability 1 leaves no caption; --captions False says the same"
    ]


def test_options_of_a_concept() -> None:
    negative = {"placeholder_token": "<n>", "negative": True, "repeats": 3, "learnable_property": "style"}
    negative["class_word"] = "toy"
    assert sentences(concepts=[{}, negative]) == [
        "--learnable_property style has no effect for <n>, a negative concept",
        "--class_word toy has no effect for <n>, a negative concept",
        "--repeats 3 has no effect for <n>, a negative concept",
    ]
    assert sentences(concept={"template_file": "a.txt", "learnable_property": "style"}) == [
        "--learnable_property style has no effect on the prompts of <concept>: --template_file has the templates"
    ]


def test_setup_logs_them_with_what_the_images_lack(
    workshop: Workshop, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = {"unmasked_weight": 0.5, "template_probability": 0.5}
    training = {"lr_warmup_steps": 4}
    setup.prepare(workshop.config(data=data, training=training))
    assert "--unmasked_weight 0.5 has no effect: no training image has a mask" in caplog.messages
    assert "--template_probability 0.5 has no effect: no training image has a caption" in caplog.messages
    assert any(message.startswith("--lr_warmup_steps 4 is not less than") for message in caplog.messages)
    assert all(record.levelno == logging.WARNING for record in caplog.records)
    caplog.clear()
    images = tmp_path / "images"
    shutil.copytree(workshop.folder / "images", images)
    (images / "0.txt").write_text("a {}")
    setup.prepare(workshop.config(concept={"data_path": str(images)}, data={"template_probability": 0.5}))
    assert caplog.messages == []


def test_cross_initialization_with_a_fixed_norm_is_named() -> None:
    concept = {"placeholder_token": "<face>", "initializer_token": "person", "cross_initialization": True}
    (message,) = sentences(concept=concept, training={"optimizer": "direction"})
    assert message.startswith("--cross_initialization gives the vectors of <face> their direction alone")
    assert sentences(concept=concept, training={"optimizer": "adamw"}) == []
