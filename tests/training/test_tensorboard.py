"""What TensorBoard is told, read back from its files."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from typing import Any

import pytest
from gm.training.tracking import Tracker
from tensorboardX.proto.event_pb2 import Event  # type: ignore[import-untyped]

from gm import api
from gm.errors import UserError
from gm.training import setup, trainer
from tests.project import Workshop


def events(place: Path) -> list[Any]:
    """Return every event of the files in `place`: each is a length, a checksum, the event, a checksum."""
    found = []
    for path in sorted(place.glob("events.*")):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            found.append(Event.FromString(content[12 : 12 + length]))
            content = content[16 + length :]
    return found


def test_a_run_tells_its_curves_words_and_previews(workshop: Workshop, tmp_path: Path) -> None:
    options = {"total_step": 4, "tensorboard": True, "infer_during_train": True, "num_validation_samples": 2}
    toolkit = api.load(workshop.config(training={**options, "save_path": str(tmp_path), "save_ckpt_interval": 2}))
    trainer.run(toolkit.model, setup.prepare(toolkit.config), toolkit.backend)
    found: dict[str, dict[int, Any]] = {}
    for event in events(tmp_path / "tensorboard"):
        for value in event.summary.value:
            found.setdefault(value.tag, {})[event.step] = value
    steps = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    records = {r["step"]: r for r in steps if "loss" in r}
    for name in ("loss", "loss_smoothed", "learning_rate", "gradient_norm"):
        told = {step: value.simple_value for step, value in found[name].items()}
        assert told == pytest.approx({step: record[name] for step, record in records.items()}), name
    (held_out,) = [r for r in steps if "held_out" in r]
    assert found["held_out"][4].simple_value == pytest.approx(held_out["held_out"])
    rows = [r for r in steps if "nearest" in r]
    assert [(r["step"], r["encoder"]) for r in rows] == [(s, e) for s in (2, 4) for e in ("clip_l", "clip_g")]
    for record in rows:
        for k, norm in enumerate(record["norms"]):
            told = found[f"norm_{record['encoder']}/row_{k}"][record["step"]].simple_value
            assert told == pytest.approx(norm)
        text = found[f"nearest_{record['encoder']}/text_summary"][record["step"]].tensor.string_val[0].decode()
        assert text.splitlines()[0].startswith(f"- {record['nearest'][0][0][0]} {record['nearest'][0][0][1]:.2f}, ")
        assert len(text.splitlines()) == len(record["norms"]) == 2
    assert found["preview"][4].image.height == 16


def test_a_resumed_run_hides_what_it_writes_again(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, 7)
    tracker.values(8, {"loss": 0.5, "broken": float("nan"), "none": None})
    tracker.close()
    found = events(tmp_path)
    assert [event.step for event in found if event.HasField("session_log")] == [8]
    assert [value.tag for event in found for value in event.summary.value] == ["loss"]


def test_without_tensorboardx_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(UserError, match="--tensorboard needs tensorboardX: pip install tensorboardX, or leave it out"):
        Tracker(tmp_path, 0)
