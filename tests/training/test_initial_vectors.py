"""The vectors that training starts from: initializer tokens and embedding files."""

from __future__ import annotations

from pathlib import Path

import mindspore as ms
import numpy as np
import pytest

from gm.embeddings import io as embedding_io
from gm.embeddings.embedding import Embedding
from gm.errors import UserError
from gm.runtime.backend import Backend
from gm.training import setup, trainer
from tests.project import Workshop

EAGER = Backend("CPU", graph=False, dtype=ms.float32)


def test_initial_vectors(workshop: Workshop) -> None:
    tables = [
        workshop.model.conditioner.embedders[0].transformer.text_model.embeddings.token_embedding.embedding_table,
        workshop.model.conditioner.embedders[1].model.token_embedding.embedding_table,
    ]
    tables = [t.asnumpy() for t in tables]

    def vectors(**concept: object) -> list[np.ndarray]:
        run = trainer.prepare(workshop.model, setup.prepare(workshop.config(concept=concept)), EAGER)
        return list(run.state.vector_arrays().values())

    red, cat = 736, 2368  # OpenAI's ids of "red" and "cat"
    for found, table in zip(vectors(initializer_token="red cat", num_vectors=3), tables, strict=True):
        assert np.array_equal(found, table[[red, cat, red]])
    for found, table in zip(vectors(initializer_token="cat", num_vectors=2), tables, strict=True):
        assert np.array_equal(found, table[[cat, cat]])
    for found, table in zip(vectors(num_vectors=60), tables, strict=True):
        assert found.std() == pytest.approx(table.std(), rel=0.1)
        assert abs(found.mean() - table.mean()) < 0.1 * table.std()
        assert len(np.unique(found, axis=0)) == 60


def test_initializer_file(workshop: Workshop, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    found = Embedding(
        "<old>",
        dict(
            zip(
                ("clip_l", "clip_g"),
                (random.standard_normal((2, width), np.float32) for width in (16, 24)),
                strict=True,
            )
        ),
    )
    embedding_io.save(found, tmp_path / "old.safetensors")
    concept = {"initializer_file": str(tmp_path / "old.safetensors"), "num_vectors": 3}
    training_setup = setup.prepare(workshop.config(concept=concept))
    vectors = trainer.prepare(workshop.model, training_setup, EAGER).state.vector_arrays().values()
    for ours, theirs in zip(vectors, (found.vectors["clip_l"], found.vectors["clip_g"]), strict=True):
        assert np.array_equal(ours, theirs[[0, 1, 0]])
    with pytest.raises(UserError, match="exclude each other; give one of them"):
        setup.prepare(workshop.config(concept={**concept, "initializer_token": "cat"}))
    wide = Embedding("<wide>", {"clip_l": np.zeros((1, 768), np.float32), "clip_g": np.zeros((1, 1280), np.float32)})
    embedding_io.save(wide, tmp_path / "old.safetensors")
    with pytest.raises(UserError, match="vectors of 768 and 1280 values, the model's have 16 and 24"):
        setup.prepare(workshop.config(concept=concept))


def test_initializer_longer_than_num_vectors_is_reported(workshop: Workshop, caplog: pytest.LogCaptureFixture) -> None:
    setup.prepare(workshop.config(concept={"initializer_token": "red cat", "num_vectors": 2}))
    assert "--initializer_token" not in caplog.text
    setup.prepare(workshop.config(concept={"initializer_token": "red cat", "num_vectors": 1}))
    assert "--initializer_token 'red cat' has 2 tokens; --num_vectors 1 uses the first 1" in caplog.text


def test_cross_initialization_starts_from_the_outputs_of_the_text_encoders(workshop: Workshop, tmp_path: Path) -> None:
    concept = {"initializer_token": "red cat", "num_vectors": 3, "cross_initialization": True}
    training = {"total_step": 1, "save_path": str(tmp_path)}
    run = trainer.prepare(workshop.model, setup.prepare(workshop.config(concept=concept, training=training)), EAGER)
    for encoder, vectors in run.state.vector_arrays().items():
        table = workshop.model.token_tables()[encoder]
        red, cat = workshop.model.text_encoder_output(encoder, table[[736, 2368]])
        assert np.array_equal(vectors, [red, cat, red])
    with pytest.raises(UserError, match="--cross_initialization of <toy> needs the word whose output"):
        setup.prepare(workshop.config(concept={"cross_initialization": True}))


@pytest.mark.parametrize("cross", [False, True])
def test_vectors_start_from_the_mean_of_names(workshop: Workshop, tmp_path: Path, cross: bool) -> None:
    (tmp_path / "names.txt").write_text("red cat\n\ncat\ncat red\n")
    concept = {"initializer_names_file": str(tmp_path / "names.txt"), "num_vectors": 3, "cross_initialization": cross}
    run = trainer.prepare(workshop.model, setup.prepare(workshop.config(concept=concept)), EAGER)
    for encoder, vectors in run.state.vector_arrays().items():
        red, cat = workshop.model.token_tables()[encoder][[736, 2368]]
        first, second = (red + 2 * cat) / 3, (cat + red) / 2
        means = np.stack([first, second, first])
        expected = workshop.model.text_encoder_output(encoder, means) if cross else means
        np.testing.assert_allclose(vectors, expected, rtol=1e-4, atol=1e-6)
    for option, message in (
        ({"initializer_token": "cat"}, "--initializer_names_file and --initializer_token exclude each other"),
        ({"initializer_names_file": str(tmp_path)}, "is not a file; give a text file with a name a line"),
    ):
        with pytest.raises(UserError, match=message):
            setup.prepare(workshop.config(concept={**concept, **option}))
