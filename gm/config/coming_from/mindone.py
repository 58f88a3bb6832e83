"""Flags of mindone's `examples/stable_diffusion_v2/train_textual_inversion.py`, for Stable Diffusion 1 and 2.

Source: mindspore-lab/mindone 05d1d7e (`parse_args`). Steps there are passes, as here. Its SDXL script is the one whose
flags this toolkit has.
"""

from __future__ import annotations

from pathlib import Path

from gm.config import paths, yaml_files
from gm.config.coming_from.program import FALSE, TRUE, Flag, Program, Translation
from gm.errors import UserError, did_you_mean

_FILES = {  # the weights of each version, as `_version_cfg` there names them
    "1.5": "sd_v1.5-d0ab7146.ckpt",
    "2.0": "sd_v2_base-57526ee4.ckpt",
    "2.0-v": "sd_v2_768_v-e12e3a9b.ckpt",
    "2.1": "sd_v2-1_base-7c8d09ce.ckpt",
    "2.1-v": "sd_v2-1_768_v-061732d1.ckpt",
}
_SMALL = "small images are scaled up and named"
_CLUSTER = "it is of ModelArts or of other callbacks there"
_SCHEDULERS = {
    "constant": "constant",
    "cosine_decay": "cosine",
    "linear_decay": "linear",
    "polynomial_decay": "polynomial",
    "multi_step_decay": "constant",
}
FLAGS = {
    "mode": Flag("run.ms_mode", 0),
    "jit_level": Flag("run.jit_level"),
    "version": Flag(default="1.5", aliases=("-v",)),
    "use_parallel": Flag("training.is_parallel", False, switch=True),
    "train_config": Flag(),
    "model_config": Flag(unused="--config has the model; it goes with the weights"),
    "train_data_dir": Flag("concept.data_path", required=True),
    "pretrained_model_path": Flag(default="models/"),
    "pretrained_model_file": Flag(),
    "output_path": Flag("training.save_path", "output"),
    "learnable_property": Flag("concept.learnable_property", "object"),
    "placeholder_token": Flag("concept.placeholder_token", required=True),
    "initializer_token": Flag("concept.initializer_token"),
    "num_vectors": Flag("concept.num_vectors", 1),
    "train_data_repeats": Flag(default=1, unused="an epoch has no meaning here: --max_steps ends the training"),
    "random_crop": Flag(default=True, switch=True, unused="images are cropped around their center"),
    "filter_small_size": Flag(default=True, switch=True, unused=_SMALL),
    "replace_small_images": Flag(default=True, switch=True, unused=_SMALL),
    "image_filter_size": Flag(default="256", unused=_SMALL),
    "image_size": Flag("data.resolution", 512),
    "train_batch_size": Flag("training.train_batch_size", 1),
    "sample_batch_size": Flag(unused="it is the number of images that are generated at once"),
    "callback_size": Flag(unused=_CLUSTER),
    "enable_modelarts": Flag(default=False, switch=True, unused=_CLUSTER),
    "num_workers": Flag(unused=_CLUSTER),
    "json_data_path": Flag(unused=_CLUSTER),
    "overflow_still_update": Flag(
        default=True, switch=True, unused="a step whose gradient is not finite is always skipped"
    ),
    "ckpt_save_interval": Flag("training.save_ckpt_interval", 600),
    "log_interval": Flag("training.log_interval", 1),
    "log_level": Flag(unused="the log has one level"),
    "gradient_accumulation_steps": Flag("training.gradient_accumulation_steps", 4),
    "warmup_steps": Flag("training.lr_warmup_steps", 0),
    "start_learning_rate": Flag("training.learning_rate", 5e-5),
    "end_learning_rate": Flag(unused="schedules here end at 0"),
    "decay_steps": Flag(unused="schedules here end with the run"),
    "scheduler": Flag("training.lr_scheduler", values=_SCHEDULERS),
    "milestones": Flag(unused="a schedule in steps has no counterpart here; --lr_scheduler cosine is near to it"),
    "decay_rate": Flag(unused="a schedule in steps has no counterpart here; --lr_scheduler cosine is near to it"),
    "scale_lr": Flag("training.scale_lr", False, switch=True),
    "init_loss_scale": Flag(unused="in float16 the loss scale is found as training goes"),
    "loss_scale_factor": Flag(unused="in float16 the loss scale is found as training goes"),
    "scale_window": Flag(unused="in float16 the loss scale is found as training goes"),
    "use_ema": Flag(default=False, switch=True, refused="the vectors are not averaged; leave it out"),
    "clip_grad": Flag(default=False, switch=True),
    "max_grad_norm": Flag(default=1.0),
    "optim": Flag("training.optimizer", "adamw", values={"adamw": "adamw", "adam": "adamw"}),
    "betas": Flag(refused="--adam_beta1 and --adam_beta2 are theirs here"),
    "weight_decay": Flag("training.weight_decay", 1e-2),
    "seed": Flag("training.seed", 3407),
    "epochs": Flag(unused="--max_steps, 6000 by default, overrides it there, too"),
    "max_steps": Flag("training.total_step", 6000),
    "template_file": Flag("concept.template_file"),
}
FIXED = {
    "run.cache_weights": True,
    "run.pooling": "argmax",
    "data.captions": False,
    "data.masks": False,
    "loss.min_snr_gamma": 0.0,
}


def finish(translation: Translation) -> None:
    """Read the training config, whose values are those of flags that are not given; set weights and clipping."""
    values = translation.values
    if values["train_config"]:
        _train_config(translation)
    version = str(values["version"])
    file = values["pretrained_model_file"] or _FILES.get(version)
    if file is None:
        raise UserError(f"--version {version} is none of {', '.join(_FILES)}; give --pretrained_model_file")
    weight = Path(paths.expand(values["pretrained_model_path"])) / file
    flag = next((name for name in ("pretrained_model_file", "pretrained_model_path", "version") if values[name]), "")
    translation.set("run.weight", str(weight), flag)
    translation.set("training.max_grad_norm", values["max_grad_norm"] if values["clip_grad"] else 0.0, "max_grad_norm")
    if values["scheduler"] in (None, "multi_step_decay"):
        translation.set("training.lr_scheduler", "constant")
        translation.notes.append("multi_step_decay, the default there, has no counterpart here: the rate is constant")


def _train_config(translation: Translation) -> None:
    """Use a YAML file of flags as their defaults; a relative path that is missing here is one of mindone's folder."""
    path = Path(paths.expand(translation.values["train_config"]))
    if not path.is_file():
        translation.notes.append(f"--train_config {path} is not here: the defaults of mindone's script are used")
        return
    content = yaml_files.read(path)
    if not isinstance(content, dict):
        raise UserError(f"--train_config {path} must hold flags and their values")
    for name, value in content.items():
        flag = FLAGS.get(name)
        if flag is None:
            raise UserError(f"--train_config {path}: unknown flag {name}{did_you_mean(str(name), FLAGS)}")
        if name in translation.flags or value is None:
            continue
        if flag.switch and isinstance(value, str):
            if value.lower() not in TRUE + FALSE:
                raise UserError(f"--train_config {path}: {name} is {value!r}; it is True or False")
            value = value.lower() in TRUE
        translation.values[name] = value
        if flag.option:
            translation.options[flag.option] = flag.values.get(value, value) if flag.values else value


TEXTUAL_INVERSION = Program(
    name="mindone's train_textual_inversion.py for SD 1 and 2",
    signatures=(
        frozenset({"--train_config"}),
        frozenset({"--pretrained_model_path", "--train_data_dir"}),
        frozenset({"--pretrained_model_file", "--train_data_dir"}),
        frozenset({"--output_path", "--train_data_dir"}),
    ),
    flags=FLAGS,
    fixed=FIXED,
    finish=finish,
)
