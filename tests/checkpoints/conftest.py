"""Fixtures of pipelines that diffusers saved."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.checkpoints.full_pipelines import SavedPipeline

if TYPE_CHECKING:
    from tests.reference.case import Case


@pytest.fixture(scope="session")
def saved_pipeline(cases: Callable[[str], Case], tmp_path_factory: pytest.TempPathFactory) -> SavedPipeline:
    """Return the function that saves the pipeline of a model with diffusers, once."""
    from tests.reference.pipeline import diffusers_pipeline

    place = tmp_path_factory.mktemp("pipelines")

    def save(name: str) -> Path:
        if not (place / name).exists():
            pipe = diffusers_pipeline(cases(name).reference, place / f"files of {name}")
            pipe.save_pretrained(place / name)
            shutil.copytree(place / f"files of {name}", place / name, dirs_exist_ok=True)
        return place / name

    return save


@pytest.fixture
def source(saved_pipeline: SavedPipeline, tmp_path: Path) -> Path:
    """Return a copy of the SDXL pipeline."""
    return Path(shutil.copytree(saved_pipeline("reversed"), tmp_path / "model"))
