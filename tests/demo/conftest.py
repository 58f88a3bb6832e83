"""The app's pages in Streamlit's test driver, with the smallest model and an embedding file for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from gm.embeddings import io as embedding_io
from gm.embeddings.embedding import Embedding
from tests.demo.pages import BROWSER
from tests.project import Workshop


def script(name: str, yaml: str, weight: str, folder: str) -> None:
    """Streamlit script of one page, as `demo.sampling.App` shows it; a test may change to another page."""
    from pathlib import Path

    import streamlit as st

    from demo.app import browser, compare, generate, options, sidebar, train
    from demo.app.app_dirs import AppDirs

    dirs = AppDirs(Path(folder) / "runs", Path(folder) / "out")
    browser.restore(dirs)
    options.persist_widgets()
    name = st.session_state.get("page", name)
    spec = {"H": 16, "W": 16, "C": 4, "f": 2, "config": yaml, "ckpt": weight, "textual_inversion_weight": []}
    pages = {"generate": generate, "compare": compare, "train": train}
    pages[name].page(sidebar.show({"smallest": spec}, dirs), dirs)
    browser.save(dirs)


@pytest.fixture
def app(workshop: Workshop, tmp_path: Path) -> Callable[[str], AppTest]:
    def open_page(name: str) -> AppTest:
        config = workshop.config()
        page = AppTest.from_function(
            script, args=(name, str(workshop.yaml), config.run.weight, str(tmp_path)), default_timeout=60
        ).run()
        assert not page.exception
        return page

    return open_page


@pytest.fixture
def page(app: Callable[[str], AppTest]) -> AppTest:
    opened = app("generate")
    opened.session_state["session_id"] = BROWSER
    return opened.run()


@pytest.fixture
def embedding_file(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    vectors = {
        "clip_l": random.standard_normal((2, 16)).astype(np.float32),
        "clip_g": random.standard_normal((2, 24)).astype(np.float32),
    }
    metadata = {"recipe": {"concept": {"initializer_token": "cat"}}}
    path = tmp_path / "runs" / "toy.ckpt"
    path.parent.mkdir()
    embedding_io.save(Embedding("<toy>", vectors, metadata=metadata), path)
    return path
