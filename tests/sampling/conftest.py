"""One pipeline in PyNative mode for all sampling tests of the small model."""

from __future__ import annotations

import pytest

from gm.sampling.pipeline import Pipeline
from tests.project import Workshop
from tests.sampling.generation import PYNATIVE


@pytest.fixture(scope="session")
def pipeline(workshop: Workshop) -> Pipeline:
    return Pipeline(workshop.model, PYNATIVE, "end_of_text")
