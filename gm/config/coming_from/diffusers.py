"""Flags of diffusers' `examples/textual_inversion/textual_inversion.py` and `textual_inversion_sdxl.py`.

Source: huggingface/diffusers 1eeddd0 (`parse_args`, `TextualInversionDataset`, `main`).
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from gm.config.coming_from.program import Flag, Program, Translation
from gm.errors import UserError

PRECISIONS = {"no": "float32", "fp16": "float16", "bf16": "bfloat16"}
# "constant" and "constant_with_warmup" differ in the warm-up alone: see `_schedule`.
SCHEDULERS = {
    "constant": "constant",
    "constant_with_warmup": "constant",
    "linear": "linear",
    "cosine": "cosine",
    "cosine_with_restarts": "cosine_with_restarts",
    "polynomial": "polynomial",
}
VALIDATION = {  # the pipeline of `log_validation`
    "sampling.sampler": "dpmpp_2m",
    "sampling.sample_step": 25,
    "sampling.num_rows": 1,
}
# The scripts have no flags for these, and compute so.
FIXED = {
    "run.cache_weights": True,
    "run.pooling": "argmax",  # of transformers' CLIPTextModelWithProjection for SDXL's config
    "data.image_interpolation_mode": "bicubic",
    "data.random_flip": True,
    "data.captions": False,  # every file in the folder is an image
    "data.masks": False,  # the alpha channel is dropped
    "loss.min_snr_gamma": 0.0,
    "training.max_grad_norm": 0.0,
    "training.optimizer": "adamw",
}
ATTENTION = "attention is computed by MindSpore's kernels; --flash_attention chooses on Ascend"

_TRAINING = {
    "train_data_dir": Flag("concept.data_path", required=True),
    "repeats": Flag(default=100, unused="an epoch has no meaning here: --max_train_steps ends the training"),
    "placeholder_token": Flag("concept.placeholder_token", required=True),
    "initializer_token": Flag("concept.initializer_token", required=True),
    "num_vectors": Flag("concept.num_vectors", 1),
    "learnable_property": Flag("concept.learnable_property", "object"),
    "resolution": Flag("data.resolution", 512),
    "center_crop": Flag("data.center_crop", False, switch=True),
    "train_batch_size": Flag("training.train_batch_size", 16),
    "gradient_accumulation_steps": Flag("training.gradient_accumulation_steps", 1),
    "num_train_epochs": Flag(default=100, unused="--max_train_steps, 5000 by default, overrides it there, too"),
    "max_train_steps": Flag("training.total_step", 5000, updates=True),
    "learning_rate": Flag("training.learning_rate", 1e-4),
    "scale_lr": Flag("training.scale_lr", False, switch=True),
    "lr_scheduler": Flag("training.lr_scheduler", "constant", values=SCHEDULERS),
    "lr_warmup_steps": Flag("training.lr_warmup_steps", 500),  # updates on both sides
    "lr_num_cycles": Flag("training.lr_num_cycles", 1),
    "adam_beta1": Flag("training.adam_beta1", 0.9),
    "adam_beta2": Flag("training.adam_beta2", 0.999),
    "adam_weight_decay": Flag("training.weight_decay", 1e-2),
    "adam_epsilon": Flag("training.adam_epsilon", 1e-8),
    "use_8bit_adam": Flag(default=False, switch=True, unused="the optimizer state is some kilobytes, in float32"),
    "output_dir": Flag("training.save_path", "text-inversion-model"),
    "seed": Flag("training.seed"),
    "gradient_checkpointing": Flag("training.gradient_checkpointing", False, switch=True),
    "mixed_precision": Flag("run.precision", values=PRECISIONS),
    "allow_tf32": Flag(default=False, switch=True, unused="TF32 is a format of NVIDIA's cards"),
    "enable_xformers_memory_efficient_attention": Flag(default=False, switch=True, unused=ATTENTION),
    "dataloader_num_workers": Flag(unused="images are read and encoded once, before training", default="0"),
    "local_rank": Flag(unused="mpirun or msrun start the processes, with --is_parallel True", default="-1"),
    "logging_dir": Flag(default="logs", unused="logs are in --output_dir: log.jsonl, and for TensorBoard tensorboard/"),
    "report_to": Flag(default="tensorboard"),
    "push_to_hub": Flag("training.push_to_hub", False, switch=True),
    "hub_token": Flag(),
    "hub_model_id": Flag("training.hub_model_id"),
    "save_steps": Flag("training.save_ckpt_interval", 500, updates=True),
    "checkpointing_steps": Flag("training.checkpointing_steps", 500, updates=True),
    "checkpoints_total_limit": Flag("training.checkpoints_total_limit", 0),  # 0 keeps all
    "resume_from_checkpoint": Flag(),
    "validation_prompt": Flag("training.infer_prompt"),
    "num_validation_images": Flag("sampling.num_cols", 4),
    "validation_steps": Flag("training.infer_interval", 100, updates=True),
    "validation_epochs": Flag(unused="it is deprecated there, too; --validation_steps is the interval"),
    "save_as_full_pipeline": Flag("training.save_as_full_pipeline", False, switch=True),
    "no_safe_serialization": Flag(
        "training.learned_embeds", "safetensors", switch=True, values={True: "bin", False: "safetensors"}
    ),
}
FLAGS = {
    "pretrained_model_name_or_path": Flag("run.weight", required=True),
    "revision": Flag("run.revision"),
    "variant": Flag("run.variant"),
    "tokenizer_name": Flag(unused="all these models have CLIP's vocabulary, which is built in"),
    **_TRAINING,
}


def finish(translation: Translation) -> None:
    """Set what depends on several flags: schedule, validation images, loggers, resuming, the Hub."""
    _schedule(translation)
    _validation(translation)
    report_to(translation)
    _resume(translation)
    if translation.values["hub_token"]:
        # The client reads it there. It is a secret, and must not get into the files of the run.
        os.environ["HF_TOKEN"] = translation.values["hub_token"]
        translation.notes.append("--hub_token is used for the Hub, and stored nowhere")
    if not translation.values["push_to_hub"]:
        translation.note_unused("hub_model_id", "it needs --push_to_hub")


def _schedule(translation: Translation) -> None:
    """Drop the warm-up of "constant": diffusers' `get_constant_schedule` has none."""
    if translation.values["lr_scheduler"] != "constant":
        return
    warmup = translation.values["lr_warmup_steps"]
    translation.set("training.lr_warmup_steps", 0)
    if str(warmup) != "0":
        translation.note_unused("lr_warmup_steps", "--lr_scheduler constant has no warm-up there, too")


def _validation(translation: Translation) -> None:
    has_prompt = translation.values["validation_prompt"] is not None
    translation.set("training.infer_during_train", has_prompt, "validation_prompt")
    if has_prompt:
        translation.options.update(VALIDATION)
        return
    for name in ("num_validation_images", "validation_steps"):
        translation.note_unused(name, "it needs --validation_prompt")
        for option in ("sampling.num_cols", "training.infer_interval"):
            translation.options.pop(option, None)
            translation.sources.pop(option, None)


def report_to(translation: Translation) -> None:
    """Log to TensorBoard, the default there, if its writer is installed."""
    value = str(translation.values["report_to"])
    installed = importlib.util.find_spec("tensorboardX") is not None
    translation.set("training.tensorboard", value in ("tensorboard", "all") and installed, "report_to")
    if value in ("tensorboard", "all") and not installed:
        translation.notes.append("tensorboardX is not installed: losses are in log.jsonl and report.html alone")
    elif value not in ("tensorboard", "none"):
        translation.notes.append(f"--report_to {value}: losses are in log.jsonl and report.html, TensorBoard alone")


def _resume(translation: Translation) -> None:
    """Resume from `latest`, or from a folder of that name in the output folder, as the script looks for it."""
    value = translation.values["resume_from_checkpoint"]
    if value in (None, "latest"):
        if value:
            translation.set("training.resume", "latest", "resume_from_checkpoint")
        return
    folder = Path(translation.values["output_dir"]).expanduser() / Path(value).name
    if not folder.exists():
        raise UserError(f"--resume_from_checkpoint {value}: {folder} does not exist; latest takes the newest, if any")
    translation.set("training.resume", str(folder), "resume_from_checkpoint")


TEXTUAL_INVERSION = Program(
    name="diffusers' textual_inversion.py",
    signatures=(
        frozenset({"--pretrained_model_name_or_path", "--train_data_dir"}),
        frozenset({"--pretrained_model_name_or_path", "--output_dir"}),
    ),
    flags=FLAGS,
    fixed=FIXED,
    finish=finish,
)
