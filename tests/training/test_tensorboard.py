"""TensorBoard logger, read back from its event files."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event  # type: ignore[import-untyped]

from gm import api
from gm.errors import UserError
from gm.training import setup, trainer
from gm.training.callbacks.tensorboard import TensorBoardLogger
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


def test_run_logs_curves_nearest_tokens_and_sample_images(workshop: Workshop, tmp_path: Path) -> None:
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
    (validation,) = [r for r in steps if "validation_loss" in r]
    assert found["validation_loss"][4].simple_value == pytest.approx(validation["validation_loss"])
    vectors = [r for r in steps if "nearest_tokens" in r]
    assert [(r["step"], r["encoder"]) for r in vectors] == [(s, e) for s in (2, 4) for e in ("clip_l", "clip_g")]
    for record in vectors:
        for k, norm in enumerate(record["norms"]):
            told = found[f"norm_{record['encoder']}/vector_{k}"][record["step"]].simple_value
            assert told == pytest.approx(norm)
            for name, key in (("relative_norm", "relative_norms"), ("angle", "angles")):
                told = found[f"{name}_{record['encoder']}/vector_{k}"][record["step"]].simple_value
                assert told == pytest.approx(record[key][k])
        text = found[f"nearest_tokens_{record['encoder']}/text_summary"][record["step"]].tensor.string_val[0].decode()
        assert text.splitlines()[0].startswith(
            f"- {record['nearest_tokens'][0][0][0]} {record['nearest_tokens'][0][0][1]:.2f}, "
        )
        assert len(text.splitlines()) == len(record["norms"]) == 2
    assert found["sample_images"][4].image.height == 16


def test_resumed_run_hides_later_events(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, 7)
    logger.add_scalars(8, {"loss": 0.5, "broken": float("nan"), "none": None})
    logger.close()
    found = events(tmp_path)
    assert [event.step for event in found if event.HasField("session_log")] == [8]
    assert [value.tag for event in found for value in event.summary.value] == ["loss"]


def test_missing_tensorboardx_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(UserError, match="--tensorboard needs tensorboardX: pip install tensorboardX, or leave it out"):
        TensorBoardLogger(tmp_path)
