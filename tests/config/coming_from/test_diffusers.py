"""Command line of diffusers' textual inversion scripts: its meaning, its defaults, its errors and its log."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

from gm.config import cli, coming_from
from gm.config.coming_from import diffusers
from gm.errors import UserError
from gm.training import lr_schedule
from tests.config.coming_from.commands import GUIDE, REQUIRED, SECTIONS, parse

# Those of the two scripts in huggingface/diffusers 1eeddd0.
FLAGS = """save_steps save_as_full_pipeline num_vectors pretrained_model_name_or_path revision variant tokenizer_name
train_data_dir placeholder_token initializer_token learnable_property repeats output_dir seed resolution center_crop
train_batch_size num_train_epochs max_train_steps gradient_accumulation_steps gradient_checkpointing learning_rate
scale_lr lr_scheduler lr_warmup_steps lr_num_cycles dataloader_num_workers use_8bit_adam adam_beta1 adam_beta2
adam_weight_decay adam_epsilon push_to_hub hub_token hub_model_id logging_dir mixed_precision allow_tf32 report_to
validation_prompt num_validation_images validation_steps validation_epochs local_rank checkpointing_steps
checkpoints_total_limit resume_from_checkpoint enable_xformers_memory_efficient_attention no_safe_serialization"""


def test_every_flag_of_the_scripts_is_known() -> None:
    assert set(FLAGS.split()) == set(diffusers.FLAGS)


def test_the_command_of_the_guide_means_what_it_means_there() -> None:
    config = parse(GUIDE)
    assert config.run.weight == "model.safetensors"
    concept, data, training = config.concept, config.data, config.training
    assert (concept.data_path, concept.placeholder_token, concept.initializer_token) == ("cat", "<cat-toy>", "toy")
    assert (concept.learnable_property, concept.num_vectors) == ("object", 1)
    assert (data.resolution, data.random_flip, data.captions, data.masks) == (512, True, False, False)
    assert (data.center_crop, data.image_interpolation_mode) == (False, "bicubic")  # squashed
    assert (training.total_step, training.gradient_accumulation_steps) == (12000, 4)  # 3000 updates
    assert (training.save_path, training.push_to_hub) == ("textual_inversion_cat", True)
    assert (training.save_ckpt_interval, training.checkpointing_steps) == (2000, 2000)  # every 500 updates
    assert training.checkpoints_total_limit == 0
    assert (training.weight_decay, training.max_grad_norm) == (1e-2, 0.0)
    assert (training.adam_beta1, training.adam_beta2, training.adam_epsilon) == (0.9, 0.999, 1e-8)
    assert (training.optimizer, training.infer_during_train) == ("adamw", False)
    assert config.loss.min_snr_gamma == 0
    rates = {lr_schedule.learning_rates(update, 3000, training, ("clip_l",)) for update in (0, 1, 2999)}
    assert rates == {(5e-4 * 4,)}


def test_flags_that_are_left_out_have_their_defaults() -> None:
    config = parse(REQUIRED)
    training = config.training
    assert (training.total_step, training.train_batch_size, training.learning_rate) == (5000, 16, 1e-4)
    assert (training.save_path, config.data.resolution, training.scale_lr) == ("text-inversion-model", 512, False)
    assert training.lr_warmup_steps == 0  # 500, which "constant" ignores
    assert training.tensorboard is (importlib.util.find_spec("tensorboardX") is not None)


@pytest.mark.parametrize(
    ("flags", "scheduler", "warmup"),
    [
        ("--lr_scheduler constant --lr_warmup_steps 7", "constant", 0),
        ("--lr_scheduler constant_with_warmup --lr_warmup_steps 7", "constant", 7),
        ("--lr_scheduler constant_with_warmup", "constant", 500),
        ("--lr_scheduler linear", "linear", 500),
        ("--lr_scheduler cosine --lr_warmup_steps 7", "cosine", 7),
        ("--lr_scheduler cosine_with_restarts", "cosine_with_restarts", 500),
        ("--lr_scheduler polynomial", "polynomial", 500),
    ],
)
def test_only_constant_drops_the_warm_up(flags: str, scheduler: str, warmup: int) -> None:
    # Warm-up counts updates on both sides: accumulation does not change it.
    training = parse(f"{REQUIRED} --gradient_accumulation_steps 4 {flags}").training
    assert (training.lr_scheduler, training.lr_warmup_steps) == (scheduler, warmup)


@pytest.mark.parametrize("value", ["--scale_lr", "--scale_lr True", "--scale_lr=true"])
def test_switches_stand_alone_or_with_a_value(value: str) -> None:
    assert parse(f"{REQUIRED} {value} --num_vectors 5").training.scale_lr
    assert not parse(f"{REQUIRED} --scale_lr False").training.scale_lr


def test_steps_count_updates() -> None:
    command = f"{REQUIRED} --gradient_accumulation_steps 3 --max_train_steps 10 --save_steps 2"
    command += " --checkpointing_steps 4 --validation_prompt 'a <cat-toy>' --validation_steps 5"
    training = parse(command).training
    assert (training.total_step, training.save_ckpt_interval) == (30, 6)
    assert (training.checkpointing_steps, training.infer_interval) == (12, 15)


def test_validation_images_are_sample_images() -> None:
    config = parse(f"{REQUIRED} --validation_prompt 'A <cat-toy> backpack' --num_validation_images 3")
    training, sampling = config.training, config.sampling
    assert (training.infer_during_train, training.infer_prompt) == (True, "A <cat-toy> backpack")
    assert training.infer_interval == 100
    assert (sampling.num_cols, sampling.num_rows) == (3, 1)
    assert (sampling.sampler, sampling.sample_step) == ("dpmpp_2m", 25)


@pytest.mark.parametrize(
    ("flags", "section", "name", "value"),
    [
        ("--mixed_precision no", "run", "precision", "float32"),
        ("--mixed_precision fp16", "run", "precision", "float16"),
        ("--mixed_precision bf16", "run", "precision", "bfloat16"),
        ("--gradient_checkpointing", "training", "gradient_checkpointing", True),
        ("--center_crop", "data", "center_crop", True),
        ("--seed 7", "training", "seed", 7),
        ("--adam_weight_decay 0", "training", "weight_decay", 0.0),
        ("--adam_beta1 0.8", "training", "adam_beta1", 0.8),
        ("--checkpoints_total_limit 3", "training", "checkpoints_total_limit", 3),
        ("--no_safe_serialization", "training", "learned_embeds", "bin"),
        ("--resume_from_checkpoint latest", "training", "resume", "latest"),
        ("--report_to wandb", "training", "tensorboard", False),
        ("--learnable_property style", "concept", "learnable_property", "style"),
        ("--save_as_full_pipeline", "training", "save_as_full_pipeline", True),
        ("--num_vectors 5", "concept", "num_vectors", 5),
        ("--push_to_hub --hub_model_id me/cat", "training", "hub_model_id", "me/cat"),
        ("--ms_mode 1", "run", "ms_mode", 1),  # ours may be mixed in
        ("--noise_offset 0.1", "loss", "noise_offset", 0.1),
    ],
)
def test_flags_set_options(flags: str, section: str, name: str, value: object) -> None:
    assert getattr(getattr(parse(f"{REQUIRED} {flags}"), section), name) == value


@pytest.mark.parametrize(
    ("flags", "weight_decay", "learning_rate"),
    [
        ("", 1e-2, 1e-4),
        ("--optimizer direction", 0, 0.04),
        ("--optimizer=direction --adam_weight_decay 0.1 --learning_rate 0.02", 0.1, 0.02),
        ("--optimizer prodigy --learning_rate=1", 1e-2, 1),
    ],
)
def test_their_defaults_are_those_of_adamw(flags: str, weight_decay: float, learning_rate: float) -> None:
    training = parse(f"{REQUIRED} {flags}").training
    assert (training.weight_decay, training.learning_rate) == (weight_decay, learning_rate)


@pytest.mark.parametrize(
    ("flags", "note"),
    [
        ("--use_8bit_adam", "--use_8bit_adam has no effect: the optimizer state is some kilobytes, in float32"),
        ("--allow_tf32", "--allow_tf32 has no effect: TF32 is a format of NVIDIA's cards"),
        ("--enable_xformers_memory_efficient_attention", "--enable_xformers_memory_efficient_attention has no effect"),
        ("--dataloader_num_workers 4", "--dataloader_num_workers has no effect: images are read and encoded once"),
        ("--repeats 10", "--repeats has no effect: an epoch has no meaning here"),
        ("--num_train_epochs 3", "--num_train_epochs has no effect: --max_train_steps, 5000 by default, overrides it"),
        ("--local_rank 0", "--local_rank has no effect: mpirun or msrun start the processes"),
        ("--logging_dir x", "--logging_dir has no effect: logs are in --output_dir"),
        ("--tokenizer_name x", "--tokenizer_name has no effect: all these models have CLIP's vocabulary"),
        ("--validation_epochs 3", "--validation_epochs has no effect: it is deprecated there, too"),
        ("--validation_steps 3", "--validation_steps has no effect: it needs --validation_prompt"),
        ("--hub_model_id me/cat", "--hub_model_id has no effect: it needs --push_to_hub"),
        ("--lr_warmup_steps 7", "--lr_warmup_steps has no effect: --lr_scheduler constant has no warm-up there, too"),
        ("--report_to wandb", "--report_to wandb: losses are in log.jsonl and report.html, TensorBoard alone"),
        ("--revision fp16", "--revision fp16 has no effect: model.safetensors is not a model of the Hub"),
    ],
)
def test_flags_without_a_meaning_here_are_named(flags: str, note: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "gm")
    parse(f"{REQUIRED} {flags}")
    assert sum(note in message for message in caplog.messages) == 1


def test_one_block_of_the_log_says_the_translation(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "gm")
    parse(GUIDE)
    text = "\n".join(caplog.messages)
    assert caplog.messages[0].startswith("the command is that of diffusers' textual_inversion.py; its options here")
    assert "  --max_train_steps 3000 → --total_step 12000\n" in text
    assert "  --output_dir textual_inversion_cat → --save_path textual_inversion_cat\n" in text
    assert "--weight_decay 0.01" in text
    assert "--max_grad_norm 0.0" in text
    assert max(map(len, caplog.messages)) <= 120


def test_a_token_of_the_hub_is_kept_secret(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("HF_TOKEN", "")
    caplog.set_level("INFO", "gm")
    config = parse(f"{REQUIRED} --push_to_hub --hub_token hf_secret")
    assert os.environ["HF_TOKEN"] == "hf_secret"
    assert "hf_secret" not in repr(config) + "".join(caplog.messages)
    assert "  --hub_token is used for the Hub, and stored nowhere" in caplog.messages


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (f"{GUIDE} --total_step 10", "--max_train_steps of diffusers' textual_inversion.py and --total_step both set"),
        (f"{GUIDE} --data_path x", "--train_data_dir of diffusers' textual_inversion.py and --data_path both set"),
        (REQUIRED.replace("--initializer_token toy", ""), "--initializer_token is missing; diffusers' textual_inver"),
        (f"{REQUIRED} --max_train_steps many", "--max_train_steps is 'many'; give a whole number"),
        (f"{REQUIRED} --lr_scheduler one", "--lr_scheduler is 'one'; it may be 'constant', 'constant_with_warmup', "),
        (f"{REQUIRED} --mixed_precision half", "--mixed_precision is 'half'; it may be 'no', 'fp16', 'bf16'"),
        (f"{REQUIRED} --scale_lr maybe", "--scale_lr is 'maybe'; it is True or False, or stands alone"),
        (f"{REQUIRED} --max_train_step 3", "unknown argument --max_train_step; did you mean '--max_train_steps'?"),
        (f"{REQUIRED} --instance_data_dir x", "unknown argument --instance_data_dir; the folder of images is"),
        (
            f"{REQUIRED} --resume_from_checkpoint checkpoint-7",
            "text-inversion-model/checkpoint-7 does not exist; latest",
        ),
    ],
)
def test_errors_name_the_flags(command: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(command)
    assert message in str(caught.value)


def test_a_default_there_may_be_replaced_by_our_flag() -> None:
    config = parse(f"{REQUIRED} --total_step 10 --weight_decay 0 --random_flip False")
    assert (config.training.total_step, config.training.weight_decay, config.data.random_flip) == (10, 0.0, False)


def test_a_folder_of_a_checkpoint_is_looked_for_in_the_output_folder(tmp_path: Path) -> None:
    folder = tmp_path / "out" / "checkpoint-1500"
    folder.mkdir(parents=True)
    for name in ("checkpoint-1500", "elsewhere/checkpoint-1500", "checkpoint-1500/"):
        config = parse(f"{REQUIRED} --output_dir {tmp_path}/out --resume_from_checkpoint {name}")
        assert config.training.resume == str(folder)


def test_our_own_commands_are_not_translated(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "gm")
    flags = ["--weight", "w.safetensors", "--gradient_accumulation_steps", "4", "--num_vectors", "2"]
    assert cli.parse("", SECTIONS, flags, programs=coming_from.TRAINING) == cli.parse("", SECTIONS, flags)
    assert caplog.messages == []
    with pytest.raises(UserError, match="--total_step counts the steps, gradient accumulation steps included"):
        cli.parse("", SECTIONS, ["--max_train_steps", "100"], programs=coming_from.TRAINING)


def test_errors_of_a_script_name_the_flag_that_was_typed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> None:
        parse(f"{REQUIRED} --max_train_steps 0")

    with pytest.raises(SystemExit):
        cli.run(main)
    expected = "error: --max_train_steps (here training.total_step) is 0; it must be at least 1\n"
    assert capsys.readouterr().err == expected
    sources = {"concept.data_path": "train_data_dir", "training.seed": "seed"}
    assert coming_from.name_flags("--data_path x does not exist", sources) == (
        "--train_data_dir (here --data_path) x does not exist"
    )
