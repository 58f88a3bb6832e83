"""gm/checkpoints/torch_format.py: checkpoints of PyTorch Lightning, with objects of any class beside the weights."""

from __future__ import annotations

import argparse
import logging
import pickle
import sys
import types
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from gm.checkpoints import containers, loading
from gm.errors import UserError
from tests.reference.case import Case

pytestmark = pytest.mark.reference


@pytest.fixture
def callback() -> Any:
    """Return the class of a callback in a module that does not exist when the file is read."""
    module = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")

    class ModelCheckpoint(dict):
        def __init__(self) -> None:
            super().__init__(best=torch.ones(3))
            self.state = {"path": "epoch=3.ckpt"}

    ModelCheckpoint.__module__, ModelCheckpoint.__qualname__ = module.__name__, "ModelCheckpoint"
    module.ModelCheckpoint = ModelCheckpoint  # type: ignore[attr-defined]
    names = ["pytorch_lightning", "pytorch_lightning.callbacks", module.__name__]
    sys.modules.update(dict.fromkeys(names, module))
    yield ModelCheckpoint
    for name in names:
        del sys.modules[name]


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def lightning(case: Case, callback: Any, path: Path) -> dict[str, Any]:
    """Return a checkpoint of Stable Diffusion as `Trainer.save_checkpoint` writes it, and an object that runs code."""
    optimizer = {"state": defaultdict(dict, {0: {"exp_avg": torch.ones(2), "step": 1}}), "param_groups": [{"lr": 1e-5}]}
    return {
        "epoch": 3,
        "global_step": 470000,
        "pytorch-lightning_version": "1.4.2",
        "callbacks": {callback: {"monitor": "val/loss", "best_model_score": torch.ones(())}, "other": callback()},
        "optimizer_states": [optimizer],
        "lr_schedulers": [callback()],
        "hyper_parameters": argparse.Namespace(config=Path("a"), complex=torch.ones(2, dtype=torch.complex64)),
        "touch": Touch(path),
        "state_dict": {name: torch.from_numpy(array) for name, array in case.weights.items()},
    }


@pytest.mark.parametrize("zipped", [True, False])
def test_weights_are_read_and_nothing_is_executed(
    sd_case: Case, callback: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, zipped: bool
) -> None:
    caplog.set_level(logging.INFO)
    content = lightning(sd_case, callback, tmp_path / "touched")
    if not zipped:  # the old format cannot be read without the size of each storage
        del content["hyper_parameters"]
    torch.save(content, tmp_path / "a.ckpt", _use_new_zipfile_serialization=zipped)
    loading.convert(tmp_path / "a.ckpt", tmp_path / "b.safetensors", sd_case.config, "float32")
    assert not (tmp_path / "touched").exists()
    converted = load_file(tmp_path / "b.safetensors")
    assert set(converted) == set(sd_case.weights)
    assert all(np.array_equal(converted[name], array) for name, array in sd_case.weights.items())
    beside = "callbacks, optimizer_states, lr_schedulers, " + ("hyper_parameters, " if zipped else "") + "touch"
    assert f"{tmp_path / 'a.ckpt'}: not used: {beside} beside the weights" in caplog.messages


@pytest.mark.parametrize("zipped", [True, False])
def test_an_object_among_the_weights_is_refused(tmp_path: Path, zipped: bool) -> None:
    for content in ({"state_dict": {"a": Touch(tmp_path / "touched")}}, {"a": Touch(tmp_path / "touched")}):
        torch.save(content, tmp_path / "a.ckpt", _use_new_zipfile_serialization=zipped)
        with pytest.raises(UserError, match=r"asks for \S+, which is not a tensor and could run a program"):
            containers.read_weights(tmp_path / "a.ckpt")
    assert not (tmp_path / "touched").exists()


def test_a_whole_module_is_refused_by_its_class(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "a.ckpt")
    with pytest.raises(
        UserError, match=r"asks for torch\.nn\.modules\.linear\.Linear, .*get the model as \.safetensors"
    ):
        containers.read_weights(tmp_path / "a.ckpt")


def test_embedding_files_may_hold_no_such_object(tmp_path: Path) -> None:
    from gm.checkpoints import torch_format

    torch.save({"string_to_param": {"*": torch.ones(1, 768)}, "x": Touch(tmp_path / "touched")}, tmp_path / "a.pt")
    with pytest.raises(UserError, match="could run a program"):
        torch_format.read(tmp_path / "a.pt")


def test_a_pickle_of_other_opcodes_is_refused(tmp_path: Path) -> None:
    content = pickle.dumps({"state_dict": {}, "x": argparse.Namespace(a=bytearray(3))}, protocol=5)
    (tmp_path / "a.ckpt").write_bytes(content)
    with pytest.raises(UserError):
        containers.read_weights(tmp_path / "a.ckpt")
