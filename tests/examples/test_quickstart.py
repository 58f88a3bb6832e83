"""examples/quickstart.ipynb runs, and is shipped with small images."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"
PURPLE, PINK = (130, 10, 226), (226, 130, 130)  # the stripes of datasets/humbug


def images(notebook: nbformat.NotebookNode) -> list[np.ndarray]:
    """Return the images in the outputs, from the first cell to the last."""
    outputs = [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", [])]
    files = [io.BytesIO(base64.b64decode(data["image/png"])) for data in outputs if "image/png" in data]
    return [np.asarray(Image.open(file).convert("RGB")) for file in files]


def color_share(pixels: np.ndarray, color: tuple[int, int, int]) -> float:
    """Return the share of the pixels that are close to a color."""
    return float(np.mean(np.linalg.norm(pixels.astype(np.float32) - color, axis=-1) < 90))


def test_quickstart_notebook_runs_and_trains_the_concept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    resources = {"metadata": {"path": str(NOTEBOOK.parent)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    _, _, before, after, loaded = images(notebook)
    assert before.shape == after.shape
    for color in (PURPLE, PINK):
        assert color_share(after, color) > color_share(before, color) + 0.02
    alone = after[:, : loaded.shape[1]].astype(int)  # the same image from a batch of three: equal up to rounding
    assert np.abs(loaded.astype(int) - alone).max() <= 2


def test_quickstart_notebook_is_shipped_with_its_images() -> None:
    assert NOTEBOOK.stat().st_size < 1_000_000
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert len(images(notebook)) == 5
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.get("name") == "stderr" or output.output_type == "error"]
    assert str(ROOT) not in NOTEBOOK.read_text()
