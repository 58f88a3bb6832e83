"""States of a run: kept whole whatever happens, found again, and refused where they do not fit."""

from __future__ import annotations

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
from gm.training import checkpoint
from gm.training.checkpoint import Checkpoint
from tests.project import Workshop


def made(step: int, config: Config | None = None) -> Checkpoint:
    tensors = {"rows_1": np.full((2, 3), step / 3, np.float32), "updates": np.float32(step)}
    return Checkpoint(
        step, step // 2, tensors, "base", checkpoint.config_values(config or Config()), {"console": [step / 7]}
    )


def test_what_is_saved_is_what_is_read(tmp_path: Path) -> None:
    path = checkpoint.save(made(7), tmp_path, 2)
    assert path == tmp_path / "state_7.ckpt"
    found = checkpoint.load(path)
    assert (found.step, found.updates, found.base_model, found.path) == (7, 3, "base", path)
    assert found.notes == {"console": [1.0]}
    assert found.options == checkpoint.config_values(Config())
    assert np.array_equal(found.tensors["rows_1"], made(7).tensors["rows_1"])
    assert found.tensors["updates"].item() == 7


def test_the_newest_are_kept_and_the_newest_is_found(tmp_path: Path) -> None:
    for step in (5, 90, 100):  # by number, not by letter
        checkpoint.save(made(step), tmp_path, 2)
    (tmp_path / "state_of_things.ckpt").write_text("mine")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["state_100.ckpt", "state_90.ckpt", "state_of_things.ckpt"]
    found = checkpoint.find("latest", tmp_path)
    assert found
    assert found.step == 100
    assert checkpoint.find(str(tmp_path / "state_90.ckpt"), "elsewhere") is not None
    assert checkpoint.find(None, tmp_path) is None


def test_nothing_to_go_on_from_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "gm"):
        assert checkpoint.find("latest", tmp_path / "later") is None
    assert "no state in" in caplog.text
    with pytest.raises(UserError, match="is not a file"):
        checkpoint.find(str(tmp_path / "state_1.ckpt"), tmp_path)


def test_a_state_of_lists_in_lists_is_none(tmp_path: Path) -> None:
    containers.write(tmp_path / "state_1.ckpt", {}, {"state": "[" * 10**5})
    with pytest.raises(UserError, match=r"state_1.ckpt is no state of a run"):
        checkpoint.load(tmp_path / "state_1.ckpt")


def test_a_damaged_state_is_passed_over_for_the_one_before(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = checkpoint.save(made(1), tmp_path, 3).read_bytes()
    for step, content in ((2, whole[: len(whole) // 2]), (3, b""), (4, b"not a state at all")):
        (tmp_path / f"state_{step}.ckpt").write_bytes(content)
    found = checkpoint.find("latest", tmp_path)
    assert found
    assert found.step == 1
    assert caplog.text.count("the state before it is tried") == 3


def test_another_file_is_no_state(workshop: Workshop) -> None:
    with pytest.raises(UserError, match=r"weights.ckpt is no state of a run; training writes state_\*.ckpt"):
        checkpoint.load(workshop.folder / "weights.ckpt")


def test_changes_are_named(tmp_path: Path) -> None:
    found = checkpoint.load(checkpoint.save(made(5), tmp_path, 1))
    assert checkpoint.check(found, Config(training=TrainingConfig(resume="latest"))) == {}
    changed = checkpoint.check(found, Config(training=TrainingConfig(learning_rate=5e-3, lr_scheduler="cosine")))
    assert changed == {"training.learning_rate": "0.001 → 0.005", "training.lr_scheduler": "'constant' → 'cosine'"}


def test_a_state_older_than_an_option_had_its_default(workshop: Workshop, tmp_path: Path) -> None:
    saved = made(4, workshop.config(training={"total_step": 9}))
    del saved.options["model"]["kind"], saved.options["training"]["lr_scheduler"]
    found = checkpoint.load(checkpoint.save(saved, tmp_path, 1))
    assert checkpoint.check(found, workshop.config(training={"total_step": 9})) == {}
    changed = checkpoint.check(found, workshop.config(training={"total_step": 9, "lr_scheduler": "cosine"}))
    assert changed == {"training.lr_scheduler": "'constant' → 'cosine'"}


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"concept": {"num_vectors": 3}}, "concept.num_vectors was 2 → 3; the rows are there already"),
        ({"concept": {"placeholder_token": "<other>"}}, "it is the word being learned"),
        ({"concept": {"initializer_token": "cat"}}, "the rows have started already"),
        ({"training": {"total_step": 9, "optimizer": "prodigy"}}, "its state is the other's"),
        ({"run": {"pooling": "argmax"}}, "the rows were learned under that rule"),
        ({"model": {"unet": {"norm_num_groups": 2}}}, "the rows belong to that model"),
        ({"training": {"total_step": 4}}, r"state_4.ckpt is at step 4 of 4; --total_step says how many"),
    ],
)
def test_what_cannot_change_is_refused(workshop: Workshop, tmp_path: Path, sections: dict, message: str) -> None:
    found = checkpoint.load(checkpoint.save(made(4, workshop.config(training={"total_step": 9})), tmp_path, 1))
    options = {"training": {"total_step": 9}, **sections}
    with pytest.raises(UserError, match=message):
        checkpoint.check(found, workshop.config(**options))


def test_a_kill_while_saving_leaves_the_last_whole_state(tmp_path: Path) -> None:
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
        assert not found or (found.tensors["rows"] == step).all()
        print(step, flush=True)
        while True:
            step += 1
            checkpoint.save(Checkpoint(step, step, {"rows": np.full((200, 1280), step, np.float32)}, "base", {}), folder, 2)
    """
    draw, last = random.Random(5), -1
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
        time.sleep(draw.uniform(0.0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        left += len(list(tmp_path.glob(".*.tmp")))
    assert last > 40
    checkpoint.save(made(last + 1000), tmp_path, 2)
    assert len(list(tmp_path.glob("state_*.ckpt"))) == 2  # kills before old ones were removed left more
    assert left > 0, "no kill met a file half written"
