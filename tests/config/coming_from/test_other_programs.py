"""Command lines of kohya's, mindone's, InvokeAI's and the original scripts."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from gm.config import Config, cli, coming_from
from gm.config.coming_from import original
from gm.errors import UserError
from tests.config.coming_from.commands import parse

KOHYA = "--pretrained_model_name_or_path m.safetensors --train_data_dir cat --token_string mycat --output_dir out"
MINDONE = "--output_path out --train_data_dir cat --placeholder_token '<cat>'"
ORIGINAL = "--base configs/v1-finetune.yaml -t --actual_resume model.ckpt -n my_cat --gpus 0, --data_root d/cat"
INVOKEAI = "--model m.safetensors --train_data_dir cat --trigger_term cat-toy --output_dir out"


def sampled(command: str) -> Config:
    return cli.parse("test", ("run", "sampling"), shlex.split(command), programs=coming_from.SAMPLING)


def value(config: Config, option: str) -> Any:
    found: Any = config
    for name in option.split("."):
        found = getattr(found, name)
    return found


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (
            KOHYA,
            {
                "run.weight": "m.safetensors",
                "run.pooling": "end_of_text",
                "concept.data_path": "cat",
                "concept.placeholder_token": "mycat",
                "training.total_step": 1600,
                "training.learning_rate": 2e-6,
                "training.max_grad_norm": 1.0,
                "training.weight_decay": 1e-2,
                "training.save_ckpt_interval": 1600,
                "training.output_name": "mycat.pt",
                "data.captions": True,
                "data.random_flip": False,
                "loss.min_snr_gamma": 0.0,
            },
        ),
        (
            f"{KOHYA} --gradient_accumulation_steps 2 --max_train_steps 100 --save_every_n_steps 10 "
            "--use_style_template",
            {
                "training.total_step": 200,
                "training.save_ckpt_interval": 20,
                "concept.learnable_property": "style",
                "data.captions": False,
            },
        ),
        (
            f"{KOHYA} --optimizer_type Prodigy --learning_rate 1 --optimizer_args weight_decay=0.1 betas=0.8,0.95",
            {
                "training.optimizer": "prodigy",
                "training.weight_decay": 0.1,
                "training.adam_beta1": 0.8,
                "training.adam_beta2": 0.95,
            },
        ),
        (
            f"{KOHYA} --sample_prompts p.txt --sample_every_n_steps 5 --sample_sampler k_euler_a",
            {
                "training.infer_during_train": True,
                "training.validation_prompts": ["p.txt"],
                "training.infer_interval": 5,
                "sampling.sampler": "euler_ancestral",
            },
        ),
        (f"{KOHYA} --resolution 768,512 --enable_bucket", {"data.resolution": 624, "data.enable_bucket": True}),
        (f"{KOHYA} --max_timestep 900 --min_timestep 10", {"loss.max_timestep": 899, "loss.min_timestep": 10}),
        (f"{KOHYA} --masked_loss", {"data.masks": True}),
        (
            f"{KOHYA} --v_parameterization --zero_terminal_snr --scale_v_pred_loss_like_noise_pred",
            {
                "model.schedule.prediction": "v_prediction",
                "model.schedule.rescale_betas_zero_snr": True,
                "loss.scale_v_pred_loss_like_noise_pred": True,
            },
        ),
        (f"{KOHYA} --debiased_estimation_loss", {"loss.debiased_estimation_loss": True}),
        (
            MINDONE,
            {
                "run.weight": "models/sd_v1.5-d0ab7146.ckpt",
                "training.total_step": 6000,
                "training.gradient_accumulation_steps": 4,
                "training.learning_rate": 5e-5,
                "training.max_grad_norm": 0.0,
                "training.seed": 3407,
            },
        ),
        (
            f"{MINDONE} -v 2.1-v --clip_grad True --scheduler cosine_decay --mode 1",
            {
                "run.weight": "models/sd_v2-1_768_v-061732d1.ckpt",
                "run.ms_mode": 1,
                "training.max_grad_norm": 1.0,
                "training.lr_scheduler": "cosine",
            },
        ),
        (
            f"{ORIGINAL} --init_word 'cat'",
            {
                "run.weight": "model.ckpt",
                "concept.data_path": "d/cat",
                "concept.placeholder_token": "<*>",
                "concept.initializer_token": "cat",
                "concept.learnable_property": "object",
                "training.save_path": "logs/cat_my_cat",
                "training.learning_rate": 5e-3,
                "training.optimizer": "adamw",
                "training.scale_lr": True,
                "training.train_batch_size": 2,
                "training.total_step": 6100,
                "training.max_grad_norm": 0.0,
                "data.center_crop": False,
            },
        ),
        (
            f"{ORIGINAL} --placeholder_string sks --data.params.batch_size 4 --scale_lr False "
            "--model.params.personalization_config.params.num_vectors_per_token=3",
            {
                "concept.placeholder_token": "<sks>",
                "training.train_batch_size": 4,
                "training.scale_lr": False,
                "concept.num_vectors": 3,
            },
        ),
        (
            f"{INVOKEAI} --initializer_token toy --train_batch_size 8 --scale_lr --only_save_embeds",
            {
                "run.weight": "m.safetensors",
                "concept.placeholder_token": "<cat-toy>",
                "training.max_grad_norm": 0.0,
                "training.learned_embeds": "safetensors",
                "training.scale_lr": True,
            },
        ),
    ],
)
def test_commands_set_options(command: str, expected: dict[str, Any]) -> None:
    config = parse(command)
    assert {option: value(config, option) for option in expected} == expected


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            f"{KOHYA} --clip_skip 2",
            "--clip_skip (model.text_encoder_1.clip_skip) is 2, but SDXL always takes the layer before the last",
        ),
        (
            f"{KOHYA} --shuffle_caption",
            "--shuffle_caption of kohya's train_textual_inversion.py has no counterpart here",
        ),
        (f"{KOHYA} --dataset_config x.toml", "data_path takes one folder of images"),
        (f"{KOHYA} --optimizer_type Lion", "--optimizer_type Lion has no counterpart here; give AdamW or Prodigy"),
        (f"{KOHYA} --optimizer_args d_coef=2", "--optimizer_args d_coef=2 has no counterpart here"),
        (f"{KOHYA} --save_model_as ckpt", "--save_model_as ckpt is a PyTorch file under another name; give pt or"),
        (f"{KOHYA} --resolution 768,512", "--resolution 768,512 is no square; give one side, or --enable_bucket"),
        (f"{KOHYA} --resolution big", "--resolution 'big' is not a side"),
        (f"{KOHYA} --network_dim 4", "unknown argument --network_dim"),
        (f"{KOHYA} --save_every_n_step 4", "did you mean '--save_every_n_steps'?"),
        (
            f"{MINDONE} --use_ema True",
            "--use_ema of mindone's train_textual_inversion.py for SD 1 and 2 has no counter",
        ),
        (f"{MINDONE} --version 3", "--version 3 is none of 1.5, 2.0, 2.0-v, 2.1, 2.1-v; give --pretrained_model_file"),
        ("--base b.yaml --actual_resume m.ckpt", "--data_root is missing; main.py of the original code needs it"),
        (
            f"{INVOKEAI} --placeholder_tokn x",
            "unknown argument --placeholder_tokn; did you mean '--placeholder_token'?",
        ),
    ],
)
def test_errors_name_the_flags(command: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(command)
    assert message in str(caught.value)


def test_kohyas_folders_with_repeats(tmp_path: Path) -> None:
    (tmp_path / "10_mycat cat").mkdir()
    command = KOHYA.replace("--train_data_dir cat", f"--train_data_dir {tmp_path}")
    config = parse(command)
    assert (config.concept.data_path, config.concept.repeats) == (str(tmp_path / "10_mycat cat"), 10)
    (tmp_path / "5_other").mkdir()
    with pytest.raises(UserError, match=r"has several folders of images \(10_mycat cat, 5_other\); give one, or"):
        parse(command)


def test_mindones_train_config_has_the_values_of_flags(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "gm")
    path = tmp_path / "v1.yaml"
    path.write_text("start_learning_rate: 1.0e-4\nscale_lr: True\nmax_steps: 3000\nnum_vectors: 3\nversion: '2.1'\n")
    config = parse(f"{MINDONE} --train_config {path} --num_vectors 2")
    assert (config.training.learning_rate, config.training.scale_lr) == (1e-4, True)
    assert (config.training.total_step, config.concept.num_vectors) == (3000, 2)
    assert config.run.weight == "models/sd_v2-1_base-7c8d09ce.ckpt"
    path.write_text("max_step: 3000\n")
    with pytest.raises(UserError, match="unknown flag max_step; did you mean 'max_steps'"):
        parse(f"{MINDONE} --train_config {path}")
    parse(f"{MINDONE} --train_config configs/train/nowhere.yaml")
    assert any("nowhere.yaml is not here: the defaults of mindone's script are used" in m for m in caplog.messages)


def test_the_original_sampling_script() -> None:
    config = sampled(
        "--ddim_eta 0.0 --n_samples 8 --n_iter 2 --scale 10.0 --ddim_steps 50 --embedding_path logs/gs-5049.pt "
        "--ckpt_path models/model.ckpt --prompt 'a photo of *'"
    )
    sampling = config.sampling
    assert (sampling.prompt, sampling.textual_inversion_weight) == (
        "a photo of <*>",
        ["logs/gs-5049.pt=<*>"],
    )
    assert (sampling.num_cols, sampling.num_rows, sampling.sample_step) == (8, 2, 50)
    assert (sampling.guidance_scale, sampling.sampler, sampling.ddim_eta) == (10.0, "ddim", 0.0)
    assert sampling.schedule == "leading"
    assert sampled("--plms --ddim_steps 50 --embedding_path e.pt").sampling.sampler == "plms"
    assert (config.run.weight, sampling.height, sampling.interactive) == ("models/model.ckpt", 512, False)


def test_dream_is_an_interactive_session() -> None:
    config = sampled("--embedding_path embedding.pt --weights model.ckpt -A k_euler_a -o out")
    assert config.sampling.interactive
    assert config.sampling.textual_inversion_weight == ["embedding.pt=<*>"]
    assert (config.sampling.sampler, config.sampling.save_path) == ("euler_ancestral", "out")
    with pytest.raises(UserError, match=r"--sampler is 'k_x'; it may be 'ddim', "):
        sampled("--embedding_path embedding.pt -A k_x")


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [("a *", "a <t>"), ("* and *, *.", "<t> and <t>, <t>."), ("2*3 <*> a*", "2*3 <*> a*"), ("(*:1.2)", "(<t>:1.2)")],
)
def test_a_star_alone_is_the_placeholder_token(prompt: str, expected: str) -> None:
    assert original.replace_star(prompt, "<t>") == expected


@pytest.mark.parametrize("program", [*coming_from.TRAINING, *coming_from.SAMPLING], ids=lambda program: program.name)
def test_tables_name_options_that_exist(program: coming_from.Program) -> None:
    options = {flag.option for flag in program.flags.values() if flag.option} | set(program.fixed)
    for option in options:
        value(Config(), option)
    for name, flag in program.flags.items():
        assert not (flag.option and flag.refused), name
