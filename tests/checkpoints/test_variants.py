"""gm/checkpoints/variants.py: what other programs write around the same weights is taken, with the right values."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest

from gm.checkpoints import containers, key_mapping, loading, reader
from gm.errors import UserError
from tests.checkpoints.files import lazy
from tests.reference.case import Case

CLIP_L = "conditioner.embedders.0."
CLIP_G = "conditioner.embedders.1.model."
UNET = "model.diffusion_model."
SCHEDULE_TABLES = [
    "betas",
    *("alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod"),
    *("sqrt_one_minus_alphas_cumprod", "log_one_minus_alphas_cumprod"),
    *("sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod"),
    *("posterior_variance", "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2"),
]

Weights = dict[str, np.ndarray]
Read = Callable[[Weights], str]


@pytest.fixture
def read(smallest: Case, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Read:
    """Return a function that reads a file of tensors, asserts the published values, and returns what it logged."""
    caplog.set_level(logging.INFO)
    shapes = key_mapping.parameter_shapes(smallest.model)

    def read_(weights: Weights, expected: Weights = smallest.weights, suffix: str = ".safetensors") -> str:
        caplog.clear()
        path = tmp_path / f"model{suffix}"
        containers.write(path, lazy({name: np.asarray(array, order="C") for name, array in weights.items()}))
        tensors = reader.read(path, shapes, smallest.config).tensors
        loading.check_tensors(shapes, tensors, path, "base")
        for name in shapes:
            array = expected[key_mapping.published_name(name)]
            assert tensors[name].shape == array.shape, name
            assert np.array_equal(tensors[name].read(), array), name
        assert len(caplog.messages) <= 1
        return caplog.text

    return read_


def without(weights: Weights, *parts: str) -> Weights:
    return {name: array for name, array in weights.items() if not any(part in name for part in parts)}


def test_the_published_layout_logs_nothing(read: Read, smallest: Case) -> None:
    assert read(smallest.weights) == ""


def test_a_missing_logit_scale_becomes_the_published_one(read: Callable[..., str], smallest: Case) -> None:
    scale = {CLIP_G + "logit_scale": np.array(4.6052, np.float32)}
    assert read(without(smallest.weights, "logit_scale"), expected=smallest.weights | scale) == ""


def test_the_refiner_may_lack_logit_scale(refiner: Case, tmp_path: Path) -> None:
    containers.write(tmp_path / "a.safetensors", lazy(without(refiner.weights, "logit_scale")))
    loading.convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", refiner.config, "float32")
    assert set(containers.read(tmp_path / "b.safetensors").tensors) == set(refiner.weights)


def test_tables_of_the_noise_schedule_are_left_out(read: Read, smallest: Case) -> None:
    random = np.random.default_rng(0).random(1000, np.float32)  # in no order, so not a schedule
    text = read(smallest.weights | dict.fromkeys(SCHEDULE_TABLES, random))
    assert "not used: tables of the noise schedule (12 tensors, alphas_cumprod …)" in text


def test_what_comfyui_added_to_text_encoder_1_is_left_out(read: Read, smallest: Case) -> None:
    added = {CLIP_L + "logit_scale": np.array(4.6), CLIP_L + "text_projection": np.eye(48)}
    assert "not used: the projection of text encoder 1 (2 tensors" in read(smallest.weights | added)


@pytest.mark.parametrize("key", ["transformer.text_projection.weight", "transformer.text_model.text_projection.weight"])
def test_text_encoder_1_may_have_its_projection(read: Read, smallest: Case, key: str) -> None:
    text = read(smallest.weights | {CLIP_L + key: np.eye(48, dtype=np.float32)})
    assert f"the projection of text encoder 1 ({CLIP_L}{key})" in text


def test_the_projection_as_a_linear_layer_is_transposed(read: Read, smallest: Case) -> None:
    projection = smallest.weights[CLIP_G + "text_projection"]
    assert not np.array_equal(projection, projection.T)
    weights = without(smallest.weights, CLIP_G + "text_projection")
    assert read(weights | {CLIP_G + "text_projection.weight": projection.T}) == ""


def test_moving_averages_beside_the_weights_are_left_out(read: Read, smallest: Case) -> None:
    averages = {
        "model_ema." + name.removeprefix("model.").replace(".", ""): array + 1
        for name, array in smallest.weights.items()
        if name.startswith(UNET)
    }
    counters = {"model_ema.decay": np.array(0.9999), "model_ema.num_updates": np.array(7)}
    assert "not used: moving averages of the weights (" in read(smallest.weights | averages | counters)
    assert "(model_ema.decay)" in read(smallest.weights | {"model_ema.decay": np.array(0.9999)})


@pytest.mark.parametrize("prefix", ["model_ema.", "ema."])
def test_moving_averages_alone_are_the_weights(read: Read, smallest: Case, prefix: str) -> None:
    def average(name: str) -> str:
        return prefix + (name.removeprefix("model.").replace(".", "") if prefix == "model_ema." else name)

    weights = {average(name) if name.startswith(UNET) else name: a for name, a in smallest.weights.items()}
    assert "moving averages" in read(weights | {"model_ema.decay": np.array(0.9999)})


def as_linear(weights: Weights) -> Weights:
    return {name: a[:, :, 0, 0] if ".attn_1." in name and a.ndim == 4 else a for name, a in weights.items()}


def test_the_attention_of_the_vae_may_be_linear(read: Read, smallest: Case) -> None:
    assert read(as_linear(smallest.weights)) == ""


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize(
    "names",
    [
        ("to_q", "to_k", "to_v", "to_out.0", "group_norm"),
        ("query", "key", "value", "proj_attn", "group_norm"),
    ],
)
def test_the_attention_of_the_vae_may_have_diffusers_names(
    read: Read, smallest: Case, names: tuple[str, ...], linear: bool
) -> None:
    weights = as_linear(smallest.weights) if linear else smallest.weights
    for published, theirs in zip(("q", "k", "v", "proj_out", "norm"), names, strict=True):
        weights = {name.replace(f"attn_1.{published}.", f"attn_1.{theirs}."): a for name, a in weights.items()}
    assert not any("attn_1.q." in name for name in weights)
    assert read(weights) == ""


def test_projections_of_the_unet_may_be_convolutions(read: Read, smallest: Case) -> None:
    weights = {
        name: a[:, :, None, None] if name.endswith(("proj_in.weight", "proj_out.weight")) and a.ndim == 2 else a
        for name, a in smallest.weights.items()
    }
    assert sum(weights[name].ndim != a.ndim for name, a in smallest.weights.items()) >= 2
    assert read(weights) == ""


@pytest.mark.parametrize(("count", "rows"), [(1, "row 49408"), (3, "rows 49408 to 49410")])
def test_rows_added_to_the_token_tables_are_left_out_and_named(
    read: Read, smallest: Case, count: int, rows: str
) -> None:
    tables = {
        name: np.concatenate((a, np.ones((count, a.shape[1]), np.float32)))
        for name, a in smallest.weights.items()
        if "token_embedding" in name
    }
    assert len(tables) == 2
    text = read(smallest.weights | tables)
    assert all(f"{rows} of {name}, added tokens" in text for name in tables)


def test_a_logit_scale_of_one_dimension_is_a_scalar(read: Read, smallest: Case) -> None:
    name = CLIP_G + "logit_scale"
    assert read(smallest.weights | {name: smallest.weights[name].reshape(1)}) == ""


def test_another_vocabulary_is_not_taken_for_added_rows(read: Read, smallest: Case) -> None:
    name = next(name for name in smallest.weights if "token_embedding" in name)
    with pytest.raises(UserError, match=r"of another shape \(.*token_embedding"):
        read(smallest.weights | {name: np.concatenate([smallest.weights[name]] * 2)})


def test_checkpoints_of_mindone_are_read(read: Callable[..., str], smallest: Case, tmp_path: Path) -> None:
    """Its training writes `._backbone` into names, moving averages under `ema.`, and the number of steps."""
    names = {
        published: name
        for name in key_mapping.parameter_shapes(smallest.model)
        for published in [key_mapping.published_name(name)]
    }
    weights = {names[name]: array for name, array in smallest.weights.items()}
    backbone = {
        name.replace("conditioner.", "conditioner._backbone.").replace(UNET, UNET + "_backbone."): array
        for name, array in weights.items()
    }
    averages = {f"ema.{name}": array + 1 for name, array in weights.items() if name.startswith(UNET)}
    beside = {"global_step": np.array(3000, np.int32), "learning_rate": np.array(1e-4, np.float32)}
    text = read(backbone | averages | beside, suffix=".ckpt")
    assert "moving averages of the weights (" in text
    assert "the counters and the optimizer's state of a training (2 tensors, global_step …)" in text


def test_a_checkpoint_of_mindspores_own_callback_is_read(smallest: Case, tmp_path: Path) -> None:
    ms.save_checkpoint(smallest.model, str(tmp_path / "a.ckpt"), append_dict={"epoch_num": 1, "step_num": 10})
    loading.convert(tmp_path / "a.ckpt", tmp_path / "b.ckpt", smallest.config, "float32")
    assert set(containers.read(tmp_path / "b.ckpt").tensors) == set(key_mapping.parameter_shapes(smallest.model))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_wrappers_of_pytorch_are_removed_from_names(read: Read, smallest: Case, prefix: str) -> None:
    assert read({prefix + name: array for name, array in smallest.weights.items()}) == ""


def test_the_loss_of_the_vae_and_the_optimizer_are_left_out(read: Read, smallest: Case) -> None:
    text = read(
        smallest.weights
        | {
            "first_stage_model.loss.logvar": np.zeros(1),
            "moment1.a": np.zeros(3),
            CLIP_G + "attn_mask": np.ones((77, 77)),
        }
    )
    assert "the loss of the autoencoder's training (first_stage_model.loss.logvar)" in text
    assert "causal masks" in text


def test_a_tensor_that_no_rule_knows_is_still_refused(read: Read, smallest: Case) -> None:
    for name in ("extra", "my_betas", UNET + "extra.weight", CLIP_L + "extra"):
        with pytest.raises(UserError, match=rf"1 unexpected \({name}\)"):
            read(smallest.weights | {name: np.zeros(1)})
