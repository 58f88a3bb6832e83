"""The app's pages as Streamlit's own test driver shows them, on the smallest model, and a learned word for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from gm.embeddings import io as embedding_io
from gm.embeddings.embedding import Embedding
from tests.project import Workshop


def script(name: str, yaml: str, weight: str, folder: str) -> None:
    """What Streamlit runs: one page, as `demo.sampling.main` would show it; a test may change to another."""
    from pathlib import Path

    import streamlit as st

    from demo.app import compare, draw, learn, model, options
    from demo.app.places import Places

    options.keep()
    name = st.session_state.get("page", name)
    spec = {"H": 16, "W": 16, "C": 4, "f": 2, "config": yaml, "ckpt": weight, "textual_inversion_weight": []}
    places = Places(Path(folder) / "runs", Path(folder) / "out")
    {"draw": draw, "compare": compare, "learn": learn}[name].page(model.sidebar({"smallest": spec}, places), places)


@pytest.fixture
def app(workshop: Workshop, tmp_path: Path) -> Callable[[str], AppTest]:
    def opened(name: str) -> AppTest:
        config = workshop.config()
        shown = AppTest.from_function(
            script, args=(name, str(workshop.yaml), config.run.weight, str(tmp_path)), default_timeout=60
        ).run()
        assert not shown.exception
        return shown

    return opened


@pytest.fixture
def learned(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    rows = (random.standard_normal((2, width)).astype(np.float32) for width in (16, 24))
    (tmp_path / "runs").mkdir()
    details = {"recipe": {"concept": {"initializer_token": "cat"}}}
    embedding_io.save(
        Embedding("<toy>", dict(zip(("clip_l", "clip_g"), rows, strict=True)), metadata=details),
        tmp_path / "runs" / "toy.ckpt",
    )
    return tmp_path / "runs" / "toy.ckpt"
