"""gm/embeddings/description.py: the token tables of a model, from a single file or a diffusers folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from gm.embeddings import description
from gm.errors import UserError
from gm.text.tokenizer import VOCAB_SIZE

KEY = "text_model.embeddings.token_embedding.weight"


@pytest.fixture
def tables() -> dict[str, np.ndarray]:
    """Return tables with two rows that textual inversion added."""
    rng = np.random.default_rng()
    return {
        name: rng.normal(size=(VOCAB_SIZE + 2, width)).astype(np.float32) for name, width in {"l": 2, "g": 3}.items()
    }


def assert_read(path: Path, tables: dict[str, np.ndarray]) -> None:
    read = description.read_token_tables(path)
    assert np.array_equal(read["clip_l"], tables["l"][:VOCAB_SIZE])
    assert np.array_equal(read["clip_g"], tables["g"][:VOCAB_SIZE])


def test_token_tables_of_a_published_file(tables: dict[str, np.ndarray], tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    keys = {
        "l": f"conditioner.embedders.0.transformer.{KEY}",
        "g": "conditioner.embedders.1.model.token_embedding.weight",
    }
    save_file({key: tables[name] for name, key in keys.items()}, path)
    assert_read(path, tables)
    save_file({keys["l"]: tables["l"]}, path)
    with pytest.raises(UserError, match="is no model of SDXL, Stable Diffusion 1 or 2: it lacks the token embeddings"):
        description.read_token_tables(path)


def test_token_tables_of_a_diffusers_folder(tables: dict[str, np.ndarray], tmp_path: Path) -> None:
    for name, folder in {"l": "text_encoder", "g": "text_encoder_2"}.items():
        (tmp_path / folder).mkdir()
        save_file({KEY: tables[name], "other": np.zeros(1, np.float32)}, tmp_path / folder / "model.safetensors")
    assert_read(tmp_path, tables)
    save_file({"other": np.zeros(1, np.float32)}, tmp_path / "text_encoder_2" / "model.safetensors")
    with pytest.raises(UserError, match="text_encoder_2 has no token embeddings"):
        description.read_token_tables(tmp_path)
    (tmp_path / "text_encoder").rename(tmp_path / "moved")
    with pytest.raises(UserError, match="is not a diffusers SDXL folder: it has no text_encoder"):
        description.read_token_tables(tmp_path)
