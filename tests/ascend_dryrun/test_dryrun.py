"""Everything that the tiny model compiles for Ascend, and how many transposes and casts its graphs have."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.ascend_dryrun.tool import ROOT, TINY_SD1, run_tool
from tools.ascend_dryrun import dryrun, stand_ins

GRAPHS = {
    *("train_step", "update", "update_of_8_ranks", "conditioner", "project_context", "denoiser"),
    *("vae_decode", "vae_encode"),
}
# Of each graph: all kernels at most, the attentions with the transposes next to them, the norms with the casts next to
# them. Change a number here together with the code that changes it; docs/performance.md shows the kinds. Updates have
# two kernels more on MindSpore 2.9 than on 2.8.
# The tiny model's heads have 20 and 12 channels, padded to 32 and 16 for flash attention; float32 composes it.
EXPECTED = {
    "float16": {
        "train_step": (870, (19, 0), (62, 0)),
        "conditioner": (92, (5, 0), (11, 0)),
        "denoiser": (326, (14, 0), (51, 0)),
        "vae_decode": (88, (1, 6), (18, 0)),
        "vae_encode": (66, (1, 6), (12, 0)),
        "update": (110, (0, 0), (0, 0)),
    },
    "bfloat16": {
        "train_step": (916, (19, 0), (62, 60)),
        "denoiser": (386, (14, 0), (51, 60)),
    },
    "float32": {
        "train_step": (1153, (19, 114), (62, 0)),
        "denoiser": (420, (14, 42), (51, 0)),
    },
}
# Of the tiny Stable Diffusion 1 in float16, with heads of 28, 42 and 14 channels: all kernels and casts at most, and
# the attentions.
SD1 = {"train_step": (730, 7, 17), "denoiser": (321, 3, 14)}
# A small Stable Diffusion 2 that predicts v, with heads of 16 channels: all kernels and casts at most, and the flash
# attentions.
SD2 = {
    "train_step": (626, 7, 16),
    "conditioner": (34, 1, 2),
    "denoiser": (303, 3, 14),
    "update_of_8_ranks": (55, 1, 0),
}
SD2_YAML = """
model:
  family: sd2
  version: small-SD-2-v
  resolution: 32
  unet: {model_channels: 32, channel_mult: [1, 2], num_res_blocks: 1, transformer_depth: [1, 1], num_head_channels: 16,
    context_dim: 32, adm_in_channels: 0, norm_num_groups: 4, upcast_attention: true}
  text_encoder_1: {width: 32, layers: 2, heads: 2}
  vae: {channels: 8, channel_mult: [1, 2], num_res_blocks: 1, norm_num_groups: 4, scale_factor: 0.18215}
  schedule: {prediction: v_prediction, rescale_betas_zero_snr: true}
training: {train_batch_size: 2}
sampling: {sampler: ddim, schedule: trailing, guider: rescaled, guidance_rescale: 0.7, guidance_scale: 5.0}
"""


@pytest.mark.parametrize("precision", EXPECTED)
def test_the_graphs_of_the_tiny_model_compile_in_every_precision(precision: str, tmp_path: Path) -> None:
    counts = run_tool(tmp_path / "counts.json", "--precision", precision)[precision]
    assert set(counts) == GRAPHS
    assert counts["update_of_8_ranks"]["kernels"]["AllReduce"] == 3  # of two encoders' gradients and their number
    for name, (most, attentions, norms) in EXPECTED[precision].items():
        assert sum(counts[name]["kernels"].values()) <= most, name
        summary = counts[name]["summary"]
        assert (summary["attentions"], summary["transposes next to attentions"]) == attentions, name
        assert (summary["norms"], summary["casts next to norms"]) == norms, name
        if precision != "float32" and not name.startswith("vae"):
            assert counts[name]["kernels"].get("FlashAttentionScore", 0) == attentions[0], name


def test_stable_diffusion_1_needs_no_transpose(tmp_path: Path) -> None:
    """Neither its padded heads nor the 1×1 convolutions around its transformer blocks."""
    flags = ("--precision", "float16", "--graphs", *SD1, "--flash_attention", "on")
    counts = run_tool(tmp_path / "counts.json", *flags, config=TINY_SD1)["float16"]
    for name, (most, casts, attentions) in SD1.items():
        kernels = counts[name]["kernels"]
        assert sum(kernels.values()) <= most, name
        assert kernels["Cast"] <= casts, name
        assert kernels["FlashAttentionScore"] == attentions, name
        assert not {"Softmax", "Transpose"} & set(kernels), name


def test_stable_diffusion_2_with_v_prediction_compiles(tmp_path: Path) -> None:
    config = tmp_path / "sd2.yaml"
    config.write_text(SD2_YAML, encoding="utf-8")
    flags = ("--precision", "float16", "--graphs", *SD2)
    counts = run_tool(tmp_path / "counts.json", *flags, config=str(config))["float16"]
    for name, (most, casts, attentions) in SD2.items():
        kernels = counts[name]["kernels"]
        assert sum(kernels.values()) <= most, name
        assert kernels["Cast"] <= casts, name
        assert kernels.get("FlashAttentionScore", 0) == attentions, name
        assert not {"Softmax", "Transpose"} & set(kernels), name
    assert counts["update_of_8_ranks"]["kernels"]["AllReduce"] == 2  # of one encoder's gradient and its number


def test_the_options_that_change_graphs_compile(tmp_path: Path) -> None:
    # Graphs that no other test needs, so that each is compiled once.
    counts = run_tool(tmp_path / "counts.json", "--variants", "--graphs", "update")["auto"]
    assert "train_step, negative concept" in counts
    # The same kernels as of one step, beside those that are computed again.
    checkpointed = counts["train_step, gradient checkpointing"]["kernels"]
    plain = counts["train_step, Huber loss"]["kernels"]
    assert checkpointed["MatMul"] > plain["MatMul"]


def test_a_910a_has_its_own_branches(tmp_path: Path) -> None:
    counts = run_tool(tmp_path / "counts.json", "--card", "ascend910", "--graphs", "train_step", "denoiser")["auto"]
    assert set(counts) == {"train_step", "denoiser"}


def test_what_cannot_run_does_not_compile(tmp_path: Path) -> None:
    folder = stand_ins.build(dryrun.CACHE)
    environment = {**stand_ins.environment(folder, "ascend910"), "PYTHONPATH": str(ROOT)}
    script = ROOT / "tests" / "ascend_dryrun" / "compile_wrong_graphs.py"
    command = [sys.executable, str(script)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    # MindSpore prints its own configuration between brackets.
    assert [line for line in done.stdout.splitlines() if not line.startswith("[")] == [
        "product: compiled",
        "product of float32 with float16: TypeError",
        "product of wrong shapes: RuntimeError",
        "unknown name: NameError",
        "gradient of wrong shapes: RuntimeError",
        "card: ascend910",
    ]
