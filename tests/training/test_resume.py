"""Resuming: a run that was stopped, killed or failed continues bit for bit and loses nothing."""

from __future__ import annotations

import dataclasses
import json
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from gm.embeddings import io as embedding_io
from gm.errors import UserError
from gm.models.stable_diffusion import StableDiffusion
from gm.runtime.backend import Backend
from gm.training import checkpoint, output_dir, setup, trainer
from tests.project import Workshop, whole_run

ROOT = Path(__file__).resolve().parents[2]
EAGER = Backend("CPU", graph=False, dtype=ms.float32)
GRAPH = Backend("CPU", graph=True, dtype=ms.float32)
Found = tuple[list[float], dict[str, np.ndarray]]


@pytest.mark.parametrize("backend", [EAGER, pytest.param(GRAPH, marks=pytest.mark.graph)], ids=["pynative", "graph"])
def test_resume_continues_bit_for_bit(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: Backend
) -> None:
    monkeypatch.setenv("GM_GRAPHS", str(tmp_path / "graphs"))  # compile once, not for every part
    schedule = {"lr_scheduler": "cosine", "lr_warmup_steps": 1, "adam_beta2": 0.9}
    config = workshop.config(training={"total_step": 10, "gradient_accumulation_steps": 4, **schedule})

    def part(start: checkpoint.Checkpoint | None, stop_after: int) -> tuple[Found, checkpoint.Checkpoint]:
        resumed = dataclasses.replace(setup.prepare(config), resume_from=start)
        run = trainer.prepare(workshop.model, resumed, backend)
        losses: list[float] = []
        for result in run.steps():
            losses.append(result.loss)
            if result.step + 1 == stop_after:
                run.signals.received = signal.SIGINT
        state = checkpoint.Checkpoint(run.step, run.updates, run.state.snapshot(), "base", {})
        return (losses, run.state.snapshot()), checkpoint.load(checkpoint.save(state, tmp_path, 1))

    (losses, end), _ = part(None, 0)
    assert len(losses) == 10
    for phase in (4, 5, 7, 9):  # just after an update, and one, three and one step into the next
        (before, _), stopped = part(None, phase)
        (after, found), _ = part(stopped, 0)
        assert (len(before), len(after)) == (phase, 10 - phase)
        assert before + after == losses
        for name, value in end.items():
            assert np.array_equal(found[name], value), name


def contents(place: Path) -> dict[str, object]:
    """Return everything a run has written that does not hold the time of day."""
    found: dict[str, object] = {p.name: p.read_bytes() for p in sorted(place.glob("*_ti.*"))}
    found |= {p.name: p.read_bytes() for p in sorted(place.glob("previews/*"))}
    records = [json.loads(line) for line in (place / "log.jsonl").read_text().splitlines()]
    found["log"] = [{k: v for k, v in r.items() if k != "seconds"} for r in records if "resumed_at" not in r]
    for path in place.glob("state_*.ckpt"):
        last = checkpoint.load(path)
        found[path.name] = (
            last.step,
            last.updates,
            last.metrics,
            last.callbacks,
            {n: t.tobytes() for n, t in last.tensors.items()},
        )
    return found


OPTIONS = {
    "total_step": 14,
    "gradient_accumulation_steps": 3,
    "checkpointing_steps": 2,
    "save_ckpt_interval": 4,
    "infer_during_train": True,
    "infer_interval": 5,
    "num_validation_samples": 2,
    "validation_loss_interval": 3,
}


@pytest.mark.e2e
def test_run_killed_again_and_again_writes_the_same_files(workshop: Workshop, tmp_path: Path) -> None:
    place = tmp_path / "run"
    command = [sys.executable, "train_textual_inversion.py", "--config", str(workshop.yaml), "--save_path", str(place)]
    command += [part for name, value in OPTIONS.items() for part in (f"--{name}", str(value))]
    started = time.monotonic()
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    whole = time.monotonic() - started
    expected = contents(place)
    place.rename(tmp_path / "whole")
    draw, steps, kills = random.Random(3), [], 0
    while kills < 20:
        process = subprocess.Popen(
            [*command, "--resume", "latest"], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        log = place / "log.jsonl"
        before = log.stat().st_size if log.exists() else 0
        while process.poll() is None and (not log.exists() or log.stat().st_size <= before):
            time.sleep(0.005)
            before = min(before, log.stat().st_size) if log.exists() else before
        time.sleep(draw.uniform(0.0, whole * (1 + kills) / 8))  # longer and longer, so that it comes to an end
        process.kill()
        error = process.communicate()[1]
        assert process.returncode in (0, -signal.SIGKILL), error
        steps.append(max((int(p.stem.split("_")[1]) for p in place.glob("state_*.ckpt")), default=0))
        if process.returncode == 0:
            break
        kills += 1
    assert process.returncode == 0, steps
    assert steps == sorted(steps)
    assert kills >= 3
    assert contents(place) == expected
    assert not list(place.glob(".*.tmp"))


@pytest.mark.e2e
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_stop_signal_saves_everything(workshop: Workshop, tmp_path: Path, number: signal.Signals) -> None:
    place = tmp_path / "run"
    command = [sys.executable, "-u", "train_textual_inversion.py", "--config", str(workshop.yaml)]
    command += ["--save_path", str(place), "--total_step", "100000", "--gradient_accumulation_steps", "3"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    while not process.stdout.readline().startswith("step "):
        pass
    process.send_signal(number)
    out, error = process.communicate(timeout=120)
    assert (process.returncode, error) == (128 + number, "")
    assert f"{number.name}: training stops after this step" in out
    stopped = checkpoint.find("latest", place)
    assert stopped
    assert f"stopped after step {stopped.step} of 100000" in out
    assert "--resume latest continues" in out
    assert embedding_io.load(place / f"smallest_{stopped.step}_ti.ckpt").metadata["step"] == stopped.step
    assert json.loads((place / "log.jsonl").read_text().splitlines()[-1])["step"] == stopped.step


def test_resume_reports_changed_options(workshop: Workshop, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    place = str(tmp_path / "run")
    whole_run(workshop.config(training={"total_step": 4, "save_path": place, "checkpointing_steps": 2}))
    first = contents(tmp_path / "run")
    again = {"total_step": 4, "save_path": place, "checkpointing_steps": 2, "resume": "latest"}
    assert whole_run(workshop.config(training=again)) == tmp_path / "run" / "smallest_4_ti.ckpt"
    assert contents(tmp_path / "run") == first  # there was nothing left to do
    options = {"total_step": 6, "save_path": place, "resume": "latest", "learning_rate": 1e-3}
    whole_run(workshop.config(training=options))
    assert "--resume: training.learning_rate has changed: 0.01 → 0.001" in caplog.text
    records = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    records = [r for r in records if "nearest_tokens" not in r]
    assert [r.get("step", "resumed") for r in records] == [1, 2, 3, 4, "resumed", 5, 6]
    assert records[4]["changed_options"]["training.learning_rate"] == "0.01 → 0.001"
    assert (tmp_path / "run" / "smallest_4_ti.ckpt").read_bytes() == first["smallest_4_ti.ckpt"]
    assert not (tmp_path / "run" / "earlier_1").exists()
    # From an earlier state, what came after it is another way on, and is kept.
    options["resume"] = str(tmp_path / "run" / "state_4.ckpt")
    whole_run(workshop.config(training=options))
    assert {p.name for p in (tmp_path / "run" / "earlier_1").iterdir()} == {
        "smallest_6_ti.ckpt",
        "smallest_6_ti.safetensors",
        "state_6.ckpt",
    }
    # Into another folder, the earlier one is left alone.
    before = contents(tmp_path / "run")
    options |= {"save_path": str(tmp_path / "other"), "total_step": 5}
    whole_run(workshop.config(training=options))
    assert contents(tmp_path / "run") == before
    assert {p.name for p in (tmp_path / "other").glob("*.ckpt")} == {"smallest_5_ti.ckpt", "state_5.ckpt"}


def test_resume_reports_changed_images_and_captions(
    workshop: Workshop, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = tmp_path / "images"
    shutil.copytree(workshop.folder / "images", images)
    options = {"total_step": 2, "save_path": str(tmp_path / "run")}
    whole_run(workshop.config(training=options, concept={"data_path": str(images)}))
    options |= {"total_step": 3, "resume": "latest"}
    moved = images.rename(tmp_path / "moved")
    training_setup = setup.prepare(workshop.config(training=options, concept={"data_path": str(moved)}))
    assert set(training_setup.changed_options) == {"concept.data_path", "training.total_step"}
    (moved / "1.txt").write_text("a {} in the snow")
    training_setup = setup.prepare(workshop.config(training=options, concept={"data_path": str(moved)}))
    assert set(training_setup.changed_options) == {
        "concept.data_path",
        "training.total_step",
        "images, captions or templates",
    }
    assert "--resume: images, captions or templates have changed" in caplog.text
    (moved / "1.txt").unlink()
    (moved / "1.png").write_bytes((moved / "0.png").read_bytes())
    assert len(setup.prepare(workshop.config(training=options, concept={"data_path": str(moved)})).changed_options) == 3


def test_resume_refuses_other_weights(workshop: Workshop, tmp_path: Path) -> None:
    options = {"total_step": 2, "save_path": str(tmp_path / "run")}
    whole_run(workshop.config(training=options))

    def spoil(model: StableDiffusion) -> None:
        norm = next(p for p in model.unet.get_parameters() if p.name.endswith("gamma"))
        norm.set_data(Tensor(norm.asnumpy() + 1))

    with pytest.raises(UserError, match=r"was saved with other weights than .*weights.ckpt; give those to --weight"):
        whole_run(workshop.config(training={**options, "total_step": 3, "resume": "latest"}), spoil)


def test_output_folder_is_locked_by_one_run(workshop: Workshop, tmp_path: Path) -> None:
    training_setup = setup.prepare(workshop.config(training={"save_path": str(tmp_path / "run")}))
    with output_dir.acquire(training_setup):
        (tmp_path / "run" / "smallest_1_ti.ckpt").write_text("being written")
        with pytest.raises(UserError, match=r"another run is writing to --save_path .*run; wait until it ends, or"):
            output_dir.acquire(training_setup).__enter__()
        assert (tmp_path / "run" / "smallest_1_ti.ckpt").exists()
    with output_dir.acquire(training_setup):
        assert (tmp_path / "run" / "earlier_1" / "smallest_1_ti.ckpt").exists()


@pytest.mark.e2e
def test_lock_ends_with_its_process(workshop: Workshop, tmp_path: Path) -> None:
    training_setup = setup.prepare(workshop.config(training={"save_path": str(tmp_path)}))
    code = f"""
import os, sys
from filelock import FileLock
lock = FileLock({str(tmp_path / ".lock")!r})
lock.acquire()
print("held", flush=True)
sys.stdin.read()
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    with pytest.raises(UserError, match="another run is writing"):
        output_dir.acquire(training_setup).__enter__()
    process.kill()
    process.communicate()
    with output_dir.acquire(training_setup):
        pass


def test_full_disk_only_loses_the_files_that_do_not_fit(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files may be no larger than a limit between that of an embedding file and that of a state."""
    place = tmp_path / "run"
    config = workshop.config(
        training={"total_step": 6, "save_path": str(place), "checkpointing_steps": 2, "save_ckpt_interval": 3}
    )
    whole_run(config)
    sizes = {p.name: p.stat().st_size for p in place.iterdir()}
    limit = sizes["state_6.ckpt"] - 100
    assert max(size for name, size in sizes.items() if not name.startswith("state")) < limit
    shutil.rmtree(place)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write .*state_6.ckpt: the file is larger than"):
            whole_run(config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    out = capsys.readouterr().out
    assert (
        len(re.findall("the training state is not saved, training continues: cannot write .*state_[0-9]+.ckpt", out))
        == 2
    )
    assert sorted(p.name for p in place.glob("*.ckpt")) == ["smallest_3_ti.ckpt", "smallest_6_ti.ckpt"]
    assert not list(place.glob(".*.tmp"))
    assert not list(place.glob("state_*"))
