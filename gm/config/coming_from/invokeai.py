"""Flags of InvokeAI: `invokeai-ti`, which wraps diffusers' script, and `dream.py`, an interactive session.

Source: invoke-ai/InvokeAI up to 3.x, `invokeai/backend/training/textual_inversion_training.py` and `ldm/dream`.
"""

from __future__ import annotations

from gm.config.coming_from import diffusers, original
from gm.config.coming_from.program import Flag, Program, Translation

SAMPLERS = {  # of `dream.py` by the names here
    "ddim": "ddim",
    "plms": "plms",
    "k_lms": "lms",
    "k_euler": "euler",
    "k_euler_a": "euler_ancestral",
    "k_heun": "heun",
    "k_dpmpp_2": "dpmpp_2m",
    "k_dpm_2": "heun",
    "k_dpm_2_a": "euler_ancestral",
}
_FOLDERS = "weights are --model, results are in --output_dir"
_LOCAL = {name: flag for name, flag in diffusers.FLAGS.items() if name not in ("pretrained_model_name_or_path",)}
TRAINING_FLAGS = {
    **_LOCAL,
    "model": Flag("run.weight", required=True),
    "placeholder_token": Flag(aliases=("--trigger_term",), required=True),
    "initializer_token": Flag("concept.initializer_token", "*"),
    "scale_lr": Flag("training.scale_lr", True, switch=True),
    "lr_warmup_steps": Flag("training.lr_warmup_steps", 0),
    "gui": Flag(default=False, switch=True, aliases=("--front_end",), unused="streamlit run demo/sampling.py trains"),
    "root_dir": Flag(aliases=("--root",), unused=_FOLDERS),
    "only_save_embeds": Flag(default=True, switch=True, unused="the base model is not changed"),
}
DREAM_FLAGS = {
    "embedding_path": Flag(required=True),
    "weights": Flag("run.weight"),
    "outdir": Flag("sampling.save_path", "outputs/img-samples", aliases=("-o",)),
    "iterations": Flag("sampling.num_cols", 1, aliases=("-n",)),
    "sampler": Flag("sampling.sampler", aliases=("-A", "-m"), values=SAMPLERS),
    "full_precision": Flag("run.precision", switch=True, aliases=("-F",), values={True: "float32", False: "auto"}),
    "web": Flag(default=False, switch=True, refused="streamlit run demo/sampling.py is the app"),
    "from_file": Flag(aliases=("--infile",), refused="give the file to --prompt"),
    "grid": Flag(default=False, switch=True, aliases=("-g",), unused="a grid is written beside the images"),
    "gfpgan": Flag(default=False, switch=True, unused="faces are not restored here"),
}


def _finish_training(translation: Translation) -> None:
    diffusers.finish(translation)
    token = translation.values["placeholder_token"]
    translation.set("concept.placeholder_token", original.wrapped(token), "placeholder_token")


TEXTUAL_INVERSION = Program(
    name="InvokeAI's invokeai-ti",
    signatures=(frozenset({"--trigger_term"}), frozenset({"--model", "--train_data_dir"})),
    flags=TRAINING_FLAGS,
    fixed=diffusers.FIXED,
    finish=_finish_training,
)
DREAM = Program(
    name="InvokeAI's dream.py",
    signatures=(frozenset({"--embedding_path"}),),
    flags=DREAM_FLAGS,
    fixed={"sampling.interactive": True},
    finish=original.finish_embedding,
)
