"""Flags of the original code (Gal et al., 2022): `main.py` and `scripts/txt2img.py`, `scripts/stable_txt2img.py`.

Source: rinongal/textual_inversion 424192d (`get_parser`, `configs/stable-diffusion/v1-finetune.yaml`,
`ldm/data/personalized.py`). InvokeAI's `main.py` was a copy of it.
"""

from __future__ import annotations

import re
from pathlib import Path

from gm.config.coming_from.program import Flag, Program, Translation
from gm.errors import UserError

STAR = "<*>"  # the placeholder token that `*`, a single token of CLIP's vocabulary, stands for
_OVERRIDES = {  # of the YAML file, as flags `--key value`
    "model.base_learning_rate": "training.learning_rate",
    "model.params.personalization_config.params.num_vectors_per_token": "concept.num_vectors",
    "data.params.batch_size": "training.train_batch_size",
    "data.params.train.params.size": "data.resolution",
    "lightning.trainer.max_steps": "training.total_step",
    "lightning.callbacks.image_logger.params.batch_frequency": "training.infer_interval",
}
_DEFAULTS = {  # those of the YAML file
    "training.learning_rate": 5e-3,
    "concept.num_vectors": 1,
    "training.train_batch_size": 2,
    "data.resolution": 512,
    "training.total_step": 6100,
    "training.infer_interval": 500,
}
_PYTORCH = "it is PyTorch Lightning's"

TRAINING_FLAGS = {
    "base": Flag(aliases=("-b",), several=True),
    "train": Flag(default=False, switch=True, aliases=("-t",)),
    "no-test": Flag(default=False, switch=True, unused="there is no test after training"),
    "project": Flag(aliases=("-p",), unused=_PYTORCH),
    "debug": Flag(default=False, switch=True, aliases=("-d",), unused=_PYTORCH),
    "seed": Flag("training.seed", 23, aliases=("-s",)),
    "name": Flag(default="", aliases=("-n",)),
    "postfix": Flag(default="", aliases=("-f",)),
    "logdir": Flag(default="logs", aliases=("-l",)),
    "resume": Flag("training.resume", aliases=("-r",)),
    "scale_lr": Flag("training.scale_lr", True, switch=True),
    "datadir_in_name": Flag(default=True, switch=True),
    "gpus": Flag(unused="--device_target chooses the device; mpirun starts several processes"),
    "actual_resume": Flag("run.weight", required=True),
    "data_root": Flag("concept.data_path", required=True),
    "embedding_manager_ckpt": Flag("concept.initializer_file"),
    "placeholder_string": Flag(default="*"),
    "init_word": Flag("concept.initializer_token"),
    **{key: Flag(option, _DEFAULTS[option]) for key, option in _OVERRIDES.items()},
}
TRAINING_FIXED = {
    "run.cache_weights": True,
    "run.pooling": "argmax",
    "data.center_crop": False,
    "data.image_interpolation_mode": "bicubic",
    "data.random_flip": True,
    "data.captions": False,
    "data.masks": False,
    "loss.min_snr_gamma": 0.0,
    "training.gradient_accumulation_steps": 1,
    "training.optimizer": "adamw",
    "training.weight_decay": 1e-2,  # PyTorch's default of AdamW
    "training.max_grad_norm": 0.0,
    "training.lr_scheduler": "constant",
    "training.save_ckpt_interval": 500,
}
SAMPLING_FLAGS = {
    "prompt": Flag("sampling.prompt", "a painting of a virus monster playing guitar"),
    "embedding_path": Flag(required=True),
    "ckpt_path": Flag("run.weight", aliases=("--ckpt",)),
    "config": Flag(unused="the model section of --config is in other words here"),
    "outdir": Flag("sampling.save_path", "outputs/txt2img-samples"),
    "ddim_steps": Flag("sampling.sample_step", 50),
    "ddim_eta": Flag("sampling.ddim_eta", 0.0),
    "plms": Flag(default=False, switch=True),
    "n_samples": Flag("sampling.num_cols", 4),
    "n_iter": Flag("sampling.num_rows", 1),
    "H": Flag("sampling.height", 512),
    "W": Flag("sampling.width", 512),
    "scale": Flag("sampling.guidance_scale", 7.5),
    "seed": Flag("sampling.seed", 42),
    "precision": Flag("run.precision", values={"full": "float32", "autocast": "auto"}),
    "from-file": Flag(),
    "skip_grid": Flag(default=False, switch=True, unused="a grid is written beside the images"),
    "skip_save": Flag(default=False, switch=True, unused="the images are always written"),
    "fixed_code": Flag(default=False, switch=True, unused="image k has the seed --seed + k"),
    "C": Flag(unused="latents have 4 channels"),
    "f": Flag(unused="latents are 8 times smaller than images"),
}


def wrapped(token: str) -> str:
    """Return the placeholder token here for one of a program whose tokens are words of CLIP's vocabulary."""
    return token if token.startswith("<") and token.endswith(">") else f"<{token}>"


def replace_star(prompt: str, token: str = STAR) -> str:
    """Return `prompt` with `token` in the place of each `*` that stands alone."""
    return re.sub(r"(?<![\w*<])\*(?![\w*>])", lambda match: token, prompt)


def _finish_training(translation: Translation) -> None:
    values = translation.values
    translation.set("concept.placeholder_token", wrapped(values["placeholder_string"]), "placeholder_string")
    configs = [str(each) for each in values["base"] or ()]
    is_style = any("style" in Path(each).name for each in configs)
    translation.set("concept.learnable_property", "style" if is_style else "object")
    if configs:
        translation.notes.append(f"--base {' '.join(configs)}: its flags here are --learnable_property and those above")
    data = Path(values["data_root"]).name if values["datadir_in_name"] else ""
    name = "_".join(part for part in (data, str(values["name"]), values["postfix"]) if part) or "concept"
    translation.set("training.save_path", str(Path(values["logdir"]).expanduser() / name), "logdir")
    if translation.options.get("training.resume") is not None:
        translation.set("training.resume", _state(str(values["resume"]), name), "resume")


def _state(resume: str, name: str) -> str:
    """Return `latest` for a folder, which there holds a run; a file is a training state of this toolkit."""
    if Path(resume).is_dir() and not resume.rstrip("/").endswith(name):
        raise UserError(f"--resume {resume} is not the output folder of this command; give one of its state_*.ckpt")
    return "latest" if Path(resume).is_dir() else resume


def finish_embedding(translation: Translation) -> None:
    """Use the embedding as `<*>`, for which the prompt has `*`."""
    path = str(translation.values["embedding_path"])
    has_token = "=" in path and not Path(path).exists()
    translation.set("sampling.textual_inversion_weight", [path if has_token else f"{path}={STAR}"], "embedding_path")
    if translation.options.get("sampling.prompt"):
        translation.set("sampling.prompt", replace_star(translation.options["sampling.prompt"]), "prompt")


def _finish_sampling(translation: Translation) -> None:
    finish_embedding(translation)
    if translation.values["from-file"]:
        translation.set("sampling.prompt", translation.values["from-file"], "from-file")
    translation.set("sampling.sampler", "plms" if translation.values["plms"] else "ddim", "plms")


TEXTUAL_INVERSION = Program(
    name="main.py of the original code",
    signatures=(frozenset({"--actual_resume"}), frozenset({"--data_root"})),
    flags=TRAINING_FLAGS,
    fixed=TRAINING_FIXED,
    finish=_finish_training,
)
TXT2IMG = Program(
    name="txt2img.py of the original code",
    signatures=(frozenset({"--embedding_path", "--ddim_steps"}), frozenset({"--embedding_path", "--ddim_eta"})),
    flags=SAMPLING_FLAGS,
    fixed={"sampling.schedule": "leading"},
    finish=_finish_sampling,
)
