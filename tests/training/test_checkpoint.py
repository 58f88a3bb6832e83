"""Checkpoints: written atomically, found again, and refused where they do not fit."""

from __future__ import annotations

import dataclasses
import logging
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from gm.checkpoints import containers
from gm.config import Config, TrainingConfig
from gm.errors import UserError
from gm.lora import files as lora_files
from gm.lora.files import LoraRecord
from gm.training import checkpoint
from gm.training.checkpoint import Checkpoint
from gm.training.optimizer import create_train_state
from tests.project import Workshop


def create(step: int, config: Config | None = None) -> Checkpoint:
    tensors = {"vectors.clip_l": np.full((2, 3), step / 3, np.float32), "updates": np.float32(step)}
    return Checkpoint(
        step,
        step // 2,
        tensors,
        "base",
        checkpoint.config_values(config or Config()),
        "fingerprint",
        {"total": step / 7},
        {"Validation": {"first": [step / 7]}},
    )


def test_save_and_load_round_trip(tmp_path: Path) -> None:
    path = checkpoint.save(create(7), tmp_path, 2)
    assert path == tmp_path / "state_7.ckpt"
    found = checkpoint.load(path)
    assert (found.step, found.updates, found.base_model, found.path) == (7, 3, "base", path)
    assert found.data_fingerprint == "fingerprint"
    assert (found.metrics, found.callbacks) == ({"total": 1.0}, {"Validation": {"first": [1.0]}})
    assert found.options == checkpoint.config_values(Config())
    assert np.array_equal(found.tensors["vectors.clip_l"], create(7).tensors["vectors.clip_l"])
    assert found.tensors["updates"].item() == 7


def test_newest_checkpoints_are_kept_and_found(tmp_path: Path) -> None:
    for step in (5, 90, 100):  # by number, not by letter
        checkpoint.save(create(step), tmp_path, 2)
    (tmp_path / "state_of_things.ckpt").write_text("mine")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["state_100.ckpt", "state_90.ckpt", "state_of_things.ckpt"]
    found = checkpoint.find("latest", tmp_path)
    assert found
    assert found.step == 100
    assert checkpoint.find(str(tmp_path / "state_90.ckpt"), "elsewhere") is not None
    assert checkpoint.find(None, tmp_path) is None


def test_missing_checkpoint_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "gm"):
        assert checkpoint.find("latest", tmp_path / "later") is None
    assert "no training state in" in caplog.text
    with pytest.raises(UserError, match="is not a file"):
        checkpoint.find(str(tmp_path / "state_1.ckpt"), tmp_path)


def test_deeply_nested_metadata_is_refused(tmp_path: Path) -> None:
    containers.write(tmp_path / "state_1.ckpt", {}, {"state": "[" * 10**5})
    with pytest.raises(UserError, match=r"state_1.ckpt is not a training state"):
        checkpoint.load(tmp_path / "state_1.ckpt")


def test_damaged_checkpoint_is_skipped_for_the_one_before(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = checkpoint.save(create(1), tmp_path, 3).read_bytes()
    for step, content in ((2, whole[: len(whole) // 2]), (3, b""), (4, b"not a state at all")):
        (tmp_path / f"state_{step}.ckpt").write_bytes(content)
    found = checkpoint.find("latest", tmp_path)
    assert found
    assert found.step == 1
    assert caplog.text.count("trying the one before it") == 3


def test_other_files_are_refused(workshop: Workshop) -> None:
    with pytest.raises(
        UserError, match=r"weights.ckpt is not a training state of this version; training writes state_\*.ckpt"
    ):
        checkpoint.load(workshop.folder / "weights.ckpt")


def test_changed_options_are_named(tmp_path: Path) -> None:
    found = checkpoint.load(checkpoint.save(create(5), tmp_path, 1))
    assert checkpoint.check(found, Config(training=TrainingConfig(resume="latest"))) == {}
    changed = checkpoint.check(found, Config(training=TrainingConfig(learning_rate=5e-3, lr_scheduler="cosine")))
    assert changed == {"training.learning_rate": "0.001 → 0.005", "training.lr_scheduler": "'constant' → 'cosine'"}


def test_option_newer_than_the_checkpoint_has_its_default(workshop: Workshop, tmp_path: Path) -> None:
    saved = create(4, workshop.config(training={"total_step": 9}))
    del saved.options["model"]["kind"], saved.options["training"]["lr_scheduler"]
    found = checkpoint.load(checkpoint.save(saved, tmp_path, 1))
    assert checkpoint.check(found, workshop.config(training={"total_step": 9})) == {}
    changed = checkpoint.check(found, workshop.config(training={"total_step": 9, "lr_scheduler": "cosine"}))
    assert changed == {"training.lr_scheduler": "'constant' → 'cosine'"}


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"concept": {"num_vectors": 3}}, "concept.num_vectors was 2 → 3; the vectors exist already"),
        ({"concept": {"placeholder_token": "<other>"}}, "the token is what is being trained"),
        ({"concept": {"initializer_token": "cat"}}, "the vectors are initialized already"),
        ({"concept": {"cross_initialization": True}}, "the vectors are initialized already"),
        ({"training": {"total_step": 9, "optimizer": "prodigy"}}, "the optimizer state is that of the other"),
        ({"training": {"total_step": 9, "token_scale": "mean"}}, "the vectors have their norm already"),
        ({"run": {"pooling": "argmax"}}, "the vectors were trained with that rule"),
        ({"model": {"unet": {"norm_num_groups": 2}}}, "the vectors belong to that model"),
        ({"training": {"total_step": 4}}, r"state_4.ckpt is at step 4 of 4; --total_step counts all steps"),
    ],
)
def test_options_that_cannot_change_are_refused(
    workshop: Workshop, tmp_path: Path, sections: dict, message: str
) -> None:
    found = checkpoint.load(checkpoint.save(create(4, workshop.config(training={"total_step": 9})), tmp_path, 1))
    options = {"training": {"total_step": 9}, **sections}
    with pytest.raises(UserError, match=message):
        checkpoint.check(found, workshop.config(**options))


@pytest.mark.e2e
def test_other_loras_are_refused(tmp_path: Path) -> None:
    """The fingerprint of the weights is that of their norms, which no LoRA changes."""
    lora = LoraRecord("detail", 0.5, "0123456789ab")
    state = dataclasses.replace(create(5), loras=lora_files.as_json([lora]))
    found = checkpoint.load(checkpoint.save(state, tmp_path, 1))
    assert checkpoint.check(found, Config(), [dataclasses.replace(lora, name="renamed")]) == {}
    for others, described in [
        ([], "are none"),
        ([dataclasses.replace(lora, strength=0.6)], r"are detail:0\.6 \(0123456789ab\)"),
        ([lora, dataclasses.replace(lora, hash="f" * 12)], "are detail:0.5 .*, detail:0.5"),
    ]:
        with pytest.raises(UserError, match=rf"--resume: the LoRAs were detail:0\.5 \(0123456789ab\) and {described}"):
            checkpoint.check(found, Config(), others)


def test_kill_while_saving_leaves_the_last_complete_checkpoint(tmp_path: Path) -> None:
    """Forty times, at a random moment of a process that does nothing but save."""
    code = """
        import sys
        from pathlib import Path
        import numpy as np
        from gm.runtime import atomic_io
        from gm.training import checkpoint
        from gm.training.checkpoint import Checkpoint
        folder = Path(sys.argv[1])
        atomic_io.clean_leftovers(folder)
        found = checkpoint.find("latest", folder)
        step = found.step if found else 0
        assert not found or (found.tensors["vectors"] == step).all()
        print(step, flush=True)
        while True:
            step += 1
            tensors = {"vectors": np.full((200, 1280), step, np.float32)}
            checkpoint.save(Checkpoint(step, step, tensors, "base", {}), folder, 2)
    """
    pauses = random.Random(5)
    last = -1
    left = 0
    for _ in range(40):
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout
        line = process.stdout.readline()
        assert line, "the state that was left cannot be read"
        assert int(line) >= last  # nothing that was saved is lost
        last = int(line)
        time.sleep(pauses.uniform(0.0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        left += len(list(tmp_path.glob(".*.tmp")))
    assert last > 40
    checkpoint.save(create(last + 1000), tmp_path, 2)
    assert len(list(tmp_path.glob("state_*.ckpt"))) == 2  # kills before old ones were removed left more
    assert left > 0, "no kill met a file half written"


def test_state_of_another_version_is_refused() -> None:
    state = create_train_state({"clip_l": np.zeros((2, 3), np.float32)})
    before = state.snapshot()
    with pytest.raises(UserError, match=r"the training state has no \S+; another version saved it: start a new run"):
        state.restore({"rows_1": np.zeros((2, 3), np.float32)})
    with pytest.raises(UserError, match=r"rows_1 \[2, 3\] of the training state does not fit this run"):
        state.restore({**before, "rows_1": np.zeros((2, 3), np.float32)})
    with pytest.raises(UserError, match=r"vectors.clip_l \[4, 3\] of the training state does not fit this run"):
        state.restore({**before, "vectors.clip_l": np.zeros((4, 3), np.float32)})


def test_the_learning_rate_is_recorded_as_the_number_that_the_run_uses() -> None:
    config = Config(training=TrainingConfig(optimizer="direction"))
    assert checkpoint.config_values(config)["training"]["learning_rate"] == 0.04
    assert checkpoint.config_values(Config())["training"]["learning_rate"] == 1e-3
