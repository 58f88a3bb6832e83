"""Python API: load, train, generate, save."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from gm import api
from gm import config as configuration
from gm.errors import UserError
from tests.project import Workshop


@pytest.fixture(scope="module")
def toolkit(workshop: Workshop) -> api.Toolkit:
    return api.load(workshop.yaml, run={"ms_mode": 1}, sampling={"sample_step": 2})


def test_load_train_generate_save(workshop: Workshop, toolkit: api.Toolkit, tmp_path: Path) -> None:
    class Record(api.Callback):
        """Collects the results of all steps."""

        results: list[api.StepResult]

        def __init__(self) -> None:
            self.results = []
            self.closed = 0

        def on_step_end(self, result: api.StepResult) -> None:
            self.results.append(result)

        def close(self) -> None:
            self.closed += 1

    record = Record()
    embedding = api.train(
        toolkit,
        workshop.folder / "images",
        "<cat-toy>",
        num_vectors=3,
        initializer_token="cat",
        training={"total_step": 3},
        data={"random_flip": True},
        callbacks=[record],
    )
    assert [result.step for result in record.results] == [1, 2, 3]
    assert record.closed == 1
    assert (embedding.placeholder_token, embedding.num_vectors, embedding.metadata["step"]) == ("<cat-toy>", 3, 3)
    api.save_embedding(embedding, tmp_path / "c_ti.ckpt")
    opened = api.load_embedding(tmp_path / "c_ti.ckpt")
    one, two = api.generate(toolkit, ["a <cat-toy>", "a <cat-toy>"], [opened], seed=3)
    again = api.generate(toolkit, "a <cat-toy>", [embedding], seed=4)
    assert one.shape == (16, 16, 3)
    assert not np.array_equal(one, two)
    assert np.array_equal(again[0], two)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c_ti.ckpt"]


def test_config_loads_as_its_file(workshop: Workshop, toolkit: api.Toolkit) -> None:
    config = configuration.load(workshop.yaml, {"run": {"ms_mode": 1}, "sampling": {"sample_step": 2}})
    other = api.load(config)
    assert other.config == toolkit.config
    assert np.array_equal(api.generate(other, "a cat")[0], api.generate(toolkit, "a cat")[0])
    with pytest.raises(UserError, match="options go into the Config"):
        api.load(config, run={"ms_mode": 0})


def test_refiner_cannot_be_loaded(workshop: Workshop) -> None:
    with pytest.raises(UserError, match="is a refiner, which cannot be trained or start an image; give a base"):
        api.load(workshop.folder / "refiner.yaml", run={"weight": str(workshop.folder / "refiner.ckpt")})


def test_mistakes_are_named(workshop: Workshop, toolkit: api.Toolkit) -> None:
    with pytest.raises(UserError, match=r"num_vectors is 0; it must be at least 1"):
        api.train(toolkit, workshop.folder / "images", "<toy>", num_vectors=0)
    with pytest.raises(UserError, match=r"sampling.sample_step is 0; it must be at least 1"):
        api.generate(toolkit, "a cat", sample_step=0)
    with pytest.raises(UserError, match=r"no weights nowhere.ckpt; --weight names them"):
        api.load(
            dataclasses.replace(toolkit.config, run=dataclasses.replace(toolkit.config.run, weight="nowhere.ckpt"))
        )
