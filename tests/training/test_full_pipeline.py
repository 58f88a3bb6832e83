"""`--save_as_full_pipeline`: checks before training, what is written after it, and where an earlier pipeline goes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gm.config import ConceptConfig, Config
from gm.embeddings import io as embedding_io
from gm.embeddings.embedding import Embedding
from gm.errors import UserError
from gm.text.tokenizer import Tokenizer
from gm.training import full_pipeline, output_dir, setup
from gm.training.setup import TrainingSetup
from tests.project import Workshop

WIDTHS = {"text_encoder": 16, "text_encoder_2": 24}  # of the workshop's model
TABLE = "text_model.embeddings.token_embedding.weight"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Return the diffusers folder of a model with three tokens, and with other networks of one value."""
    folder = tmp_path / "model"
    index: dict[str, Any] = {"_class_name": "StableDiffusionXLPipeline", "image_encoder": [None, None]}
    for name in ("scheduler", "tokenizer", "tokenizer_2", "unet", "vae", *WIDTHS):
        (folder / name).mkdir(parents=True)
        index[name] = ["a library", "AClass"]
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "scheduler" / "scheduler_config.json").write_text("{}")
    for name in ("tokenizer", "tokenizer_2"):
        (folder / name / "vocab.json").write_text('{"a": 0, "b": 1, "c": 2}')
    for name in ("unet", "vae", *WIDTHS):
        table = np.random.default_rng().standard_normal((3, WIDTHS.get(name, 1))).astype(np.float32)
        (folder / name / "config.json").write_text('{"vocab_size": 3}')
        save_file({TABLE: table}, folder / name / "model.safetensors")
    return folder


def config_of(workshop: Workshop, model: Path, save_path: Path, **training: Any) -> Config:
    training = {"save_as_full_pipeline": True, "save_path": str(save_path), **training}
    return workshop.config(run={"weight": str(model)}, training=training)


def trained(folder: Path) -> tuple[list[Path], list[Embedding]]:
    """Save embeddings of two concepts."""
    rng = np.random.default_rng()
    embeddings = [
        Embedding(
            token,
            {
                name: rng.standard_normal((count, width)).astype(np.float32)
                for name, width in (("clip_l", 16), ("clip_g", 24))
            },
        )
        for token, count in (("<cat>", 2), ("<Neg>", 1))
    ]
    paths = [folder / f"{number}_ti.ckpt" for number in range(2)]
    for each, path in zip(embeddings, paths, strict=True):
        embedding_io.save(each, path)
    return paths, embeddings


def test_the_vectors_of_all_concepts_follow_the_vocabulary(workshop: Workshop, model: Path, tmp_path: Path) -> None:
    paths, embeddings = trained(tmp_path)
    config = config_of(workshop, model, tmp_path / "out")
    assert full_pipeline.save(config, paths) == tmp_path / "out"
    for name, encoder in (("text_encoder", "clip_l"), ("text_encoder_2", "clip_g")):
        table = load_file(tmp_path / "out" / name / "model.safetensors")[TABLE]
        wanted = [load_file(model / name / "model.safetensors")[TABLE], *(each.vectors[encoder] for each in embeddings)]
        np.testing.assert_array_equal(table, np.concatenate(wanted))
        assert json.loads((tmp_path / "out" / name / "config.json").read_text()) == {"vocab_size": 6}
        added = tmp_path / "out" / name.replace("text_encoder", "tokenizer") / "added_tokens.json"
        assert json.loads(added.read_text()) == {"<cat>": 3, "<cat>_1": 4, "<Neg>": 5}
        assert json.loads((model / name / "config.json").read_text()) == {"vocab_size": 3}


def test_it_is_checked_before_training(
    workshop: Workshop, model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    concepts = [ConceptConfig(placeholder_token="<cat>", num_vectors=2)]
    full_pipeline.check(config_of(workshop, model, tmp_path / "out"), concepts)
    full_pipeline.check(config_of(workshop, tmp_path / "none", tmp_path / "out"), concepts)  # loading says so
    for inside in (model, model / "unet", tmp_path / "out" / ".." / "model"):
        with pytest.raises(UserError, match=r"--save_path .*, which is in the folder of the base model; choose ano"):
            full_pipeline.check(config_of(workshop, model, inside), concepts)
    with pytest.raises(UserError, match="is a single file; diffusers' from_single_file"):
        setup.prepare(workshop.config(training={"save_as_full_pipeline": True, "save_path": str(tmp_path / "out")}))
    (model / "tokenizer" / "added_tokens.json").write_text('{"<cat>_1": 2}')
    with pytest.raises(UserError, match=r"tokenizer has the token <cat>_1 already"):
        full_pipeline.check(config_of(workshop, model, tmp_path / "out"), concepts)
    assert not caplog.records
    (model / "tokenizer" / "added_tokens.json").unlink()
    run = {"weight": str(model), "lora_weight": ["a.safetensors"]}
    full_pipeline.check(workshop.config(run=run, training={"save_path": str(tmp_path / "out")}), concepts)
    assert "the weights of the base model without --lora_weight; load the LoRA into it" in caplog.text


def test_a_failed_write_says_how_to_repeat_it(workshop: Workshop, model: Path, tmp_path: Path) -> None:
    paths, _ = trained(tmp_path)
    (tmp_path / "out").write_text("x")
    with pytest.raises(UserError, match=r"cannot write .*out.*; the embedding is saved, .* with --resume latest"):
        full_pipeline.save(config_of(workshop, model, tmp_path / "out"), paths)


def test_the_pipeline_of_an_earlier_run_is_moved_aside(workshop: Workshop, model: Path, tmp_path: Path) -> None:
    def names() -> set[str]:
        return {path.name for path in folder.iterdir()} - {".lock", "config.yaml"}

    paths, _ = trained(tmp_path)
    folder = tmp_path / "out"
    config = config_of(workshop, model, folder)
    full_pipeline.save(config, paths)
    pipeline = names()
    assert pipeline == {path.name for path in model.iterdir()}
    with output_dir.acquire(TrainingSetup(config, [], [], Tokenizer())):
        assert names() == {"earlier_1"}
        assert {path.name for path in (folder / "earlier_1").iterdir()} == pipeline
    # A run without the option moves it as well; a folder that is the base model stays.
    full_pipeline.save(config, paths)
    for source, moved in ((folder, False), (model, True)):
        without = config_of(workshop, source, folder, save_as_full_pipeline=False)
        with output_dir.acquire(TrainingSetup(without, [], [], Tokenizer())):
            assert pipeline.isdisjoint(names()) == moved
