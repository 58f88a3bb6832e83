"""Whole runs on a small model with one text encoder: several concepts, samples, validation, resume, and images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import pytest

from gm import config as configuration
from gm.checkpoints import loading
from gm.config import Config
from gm.embeddings import io as embedding_io
from gm.models.stable_diffusion import build
from gm.runtime.backend import Backend
from gm.sampling import image_files, request, run
from gm.sampling.pipeline import Pipeline
from tests.project import Workshop, _write_weights, whole_runs

MODEL: dict[str, Any] = {
    "version": "smallest-sd",
    "unet": {
        "transformer_depth": [1, 0],
        "transformer_depth_middle": 1,
        "num_heads": 2,
        "context_dim": 16,
        "adm_in_channels": 0,
        "use_linear_in_transformer": False,
    },
    "text_encoder_2": {"width": 1280, "layers": 32, "heads": 20},  # the default
    "vae": {"scale_factor": 0.18215},
}
CONCEPTS = [{"placeholder_token": "<a>"}, {"placeholder_token": "<neg>", "negative": True}]


def config_of(workshop: Workshop, folder: Path, family: str, **sections: Any) -> Config:
    """Return the workshop's config for a model of `family` whose weights are in `folder`."""
    training = {"save_path": str(folder / "run"), "total_step": 2, **sections.pop("training", {})}
    weight = folder / f"{family}.ckpt"
    run_section = {"weight": str(weight)}
    config = workshop.config(model={**MODEL, "family": family}, run=run_section, training=training, **sections)
    if not weight.exists():
        _write_weights(build(config.model), weight, 7)
    return config


@pytest.mark.parametrize(("family", "encoder"), [("sd1", "clip_l"), ("sd2", "clip_h")])
def test_a_run_with_everything_resumes_and_its_embeddings_generate(
    workshop: Workshop, tmp_path: Path, family: str, encoder: str
) -> None:
    training = {
        "train_batch_size": 2,
        "preserve_embedding_norm": 0.1,
        "infer_during_train": True,
        "infer_interval": 10,
        "num_validation_samples": 2,
    }
    data = {"enable_bucket": True, "bucket_reso_steps": 8, "random_flip": True}
    sections = {"data": data, "concepts": CONCEPTS}
    whole_runs(config_of(workshop, tmp_path, family, training=training, **sections))
    training |= {"total_step": 3, "resume": "latest"}
    paths = whole_runs(config_of(workshop, tmp_path, family, training=training, **sections))
    assert [path.name for path in paths] == ["smallest-sd_a_3_ti.ckpt", "smallest-sd_neg_3_ti.ckpt"]
    assert embedding_io.load(paths[0], family).dims == {encoder: 16}
    sampling = {
        "prompt": "a <a> here",
        "negative_prompt": "<neg>",
        "textual_inversion_weight": [str(path) for path in paths],
        "sample_step": 2,
        "save_path": str(tmp_path / "outputs"),
    }
    config = config_of(workshop, tmp_path, family, sampling=sampling)
    model = build(config.model)
    loading.load_weights(model, config.run.weight, config.model)
    pipeline = Pipeline(model, Backend("CPU", graph=False, dtype=ms.float32), config.run.pooling)
    files = [each for each in run.run_job(pipeline, request.prepare(config)) if isinstance(each, Path)]
    parameters = image_files.read_parameters(files[0])
    assert "pooling" not in parameters
    assert parameters["model"]["family"] == family


def test_resumed_vectors_are_those_of_one_run(workshop: Workshop, tmp_path: Path) -> None:
    (whole,) = whole_runs(
        config_of(workshop, tmp_path, "sd1", training={"total_step": 3, "save_path": f"{tmp_path}/a"})
    )
    halves = {"total_step": 2, "save_path": f"{tmp_path}/b"}
    whole_runs(config_of(workshop, tmp_path, "sd1", training=halves))
    halves |= {"total_step": 3, "resume": "latest"}
    (resumed,) = whole_runs(config_of(workshop, tmp_path, "sd1", training=halves))
    vectors = [embedding_io.load(path, "sd1").vectors["clip_l"] for path in (whole, resumed)]
    np.testing.assert_array_equal(*vectors)


def test_a_config_of_stable_diffusion_is_saved_and_read_again(workshop: Workshop, tmp_path: Path) -> None:
    config = config_of(workshop, tmp_path, "sd2")
    configuration.save(config, tmp_path / "saved.yaml")
    assert configuration.load(tmp_path / "saved.yaml") == config
