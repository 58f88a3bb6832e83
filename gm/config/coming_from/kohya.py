"""Flags of kohya's sd-scripts `train_textual_inversion.py` and `sdxl_train_textual_inversion.py`.

Source: kohya-ss/sd-scripts 0010c81 (`setup_parser`, `library/train_util.py`: `add_*_arguments`,
`library/custom_train_functions.py`). Steps there are optimizer updates.
"""

from __future__ import annotations

import re
from pathlib import Path

from gm.config.coming_from.diffusers import ATTENTION, PRECISIONS, SCHEDULERS
from gm.config.coming_from.program import Flag, Program, Translation
from gm.errors import UserError

_OPTIMIZERS = {
    name.lower(): "adamw" for name in ("AdamW", "AdamW8bit", "PagedAdamW", "PagedAdamW8bit", "PagedAdamW32bit")
} | {"prodigy": "prodigy"}
_OPTIMIZER_ARGUMENTS = {"weight_decay": "training.weight_decay", "eps": "training.adam_epsilon"}
_DECAY = {"adamw": 1e-2, "prodigy": 0.0}  # PyTorch's and prodigyopt's default
_SAMPLERS = {
    "ddim": "ddim",
    "pndm": "plms",
    "lms": "lms",
    "euler": "euler",
    "euler_a": "euler_ancestral",
    "heun": "heun",
    "dpmsolver": "dpmpp_2m",
    "dpmsolver++": "dpmpp_2m",
    "k_lms": "lms",
    "k_euler": "euler",
    "k_euler_a": "euler_ancestral",
}
_MEMORY = "it changes memory and speed there; --low_memory and --gradient_checkpointing do here"
_LOGS = "logs are in --output_dir: log.jsonl, report.html, and tensorboard/ with --tensorboard"
_FILES = "the files here carry the options of the run"
_UPLOAD = "--push_to_hub publishes the embedding, tools/push_to_hub.py later"
_CAPTIONS = "change the caption files"
_CROPS = "images are cropped around their center; crop them yourself"
_LATENTS = "latents are always computed once, in memory"
_DATA = "data_path takes one folder of images; --concepts several concepts"


def _unused(names: str, reason: str, switch: bool = False) -> dict[str, Flag]:
    return {name: Flag(switch=switch, default=False if switch else None, unused=reason) for name in names.split()}


def _refused(names: str, advice: str, switch: bool = False) -> dict[str, Flag]:
    return {name: Flag(switch=switch, default=False if switch else None, refused=advice) for name in names.split()}


FLAGS = {
    # model
    "pretrained_model_name_or_path": Flag("run.weight", required=True),
    "v2": Flag(default=False, switch=True, unused="the family of a model is that of its config and weights"),
    "v_parameterization": Flag(
        "model.schedule.prediction", switch=True, values={True: "v_prediction", False: "epsilon"}
    ),
    "vae": Flag("run.vae"),
    **_unused("tokenizer_cache_dir", "CLIP's vocabulary is built in"),
    # concept
    "token_string": Flag("concept.placeholder_token", required=True),
    "init_word": Flag("concept.initializer_token"),
    "num_vectors_per_token": Flag("concept.num_vectors", 1),
    "weights": Flag("concept.initializer_file"),
    "use_object_template": Flag(default=False, switch=True),
    "use_style_template": Flag(default=False, switch=True),
    # data
    "train_data_dir": Flag(required=True),
    "resolution": Flag(),
    "enable_bucket": Flag("data.enable_bucket", False, switch=True),
    "bucket_reso_steps": Flag("data.bucket_reso_steps"),
    "flip_aug": Flag("data.random_flip", False, switch=True),
    "alpha_mask": Flag(default=False, switch=True),
    "masked_loss": Flag(default=False, switch=True),
    "caption_dropout_rate": Flag("data.caption_dropout_rate", 0.0),
    "caption_extension": Flag(
        aliases=("--caption_extention",), unused="captions are read from .txt and .caption files"
    ),
    **_unused("cache_latents cache_latents_to_disk skip_cache_check cache_info", _LATENTS, switch=True),
    **_unused("vae_batch_size", _LATENTS),
    **_unused("min_bucket_reso max_bucket_reso", "buckets have about the area of --resolution"),
    **_unused("bucket_no_upscale", "images that are scaled up are named", switch=True),
    **_refused("shuffle_caption enable_wildcard weighted_captions", _CAPTIONS, switch=True),
    **_refused("keep_tokens keep_tokens_separator secondary_separator caption_separator", _CAPTIONS),
    **_refused("caption_prefix caption_suffix caption_tag_dropout_rate caption_dropout_every_n_epochs", _CAPTIONS),
    **_refused("token_warmup_min token_warmup_step", _CAPTIONS),
    **_refused("color_aug random_crop", _CROPS, switch=True),
    **_refused("face_crop_aug_range", _CROPS),
    **_refused("dataset_config dataset_class in_json", _DATA),
    **_refused("reg_data_dir conditioning_data_dir", "textual inversion leaves the class as it is; leave it out"),
    "dataset_repeats": Flag("concept.repeats"),
    **_refused("debug_dataset", "leave it out", switch=True),
    **_unused("prior_loss_weight", "it needs --reg_data_dir"),
    # training
    "output_dir": Flag("training.save_path", required=True),
    "output_name": Flag(),
    "save_model_as": Flag(default="pt"),
    "save_every_n_steps": Flag("training.save_ckpt_interval", updates=True),
    "save_state": Flag(default=False, switch=True, unused="training states are saved every --checkpointing_steps"),
    "save_state_on_train_end": Flag(default=False, switch=True, unused="a training state is saved at the end"),
    "save_last_n_steps_state": Flag(unused="--checkpoints_total_limit is the number of training states"),
    "resume": Flag("training.resume"),
    "train_batch_size": Flag("training.train_batch_size", 1),
    "max_train_steps": Flag("training.total_step", 1600, updates=True),
    "seed": Flag("training.seed"),
    "gradient_checkpointing": Flag("training.gradient_checkpointing", False, switch=True),
    "gradient_accumulation_steps": Flag("training.gradient_accumulation_steps", 1),
    "mixed_precision": Flag("run.precision", values=PRECISIONS),
    "ddp_timeout": Flag(unused="--distributed_timeout is its name here"),
    "clip_skip": Flag("model.text_encoder_1.clip_skip"),
    **_refused("max_train_epochs", "give --max_train_steps: images × repeats × epochs / images in an update"),
    **_refused("save_every_n_epochs save_n_epoch_ratio sample_every_n_epochs", "give its interval in steps"),
    **_unused("save_last_n_epochs save_last_n_epochs_state save_last_n_steps", "all embedding files are kept"),
    **_unused("save_precision", "embedding files are float32, some kilobytes"),
    **_refused("max_token_length", "prompts of training have 75 tokens"),
    **_unused("mem_eff_attn xformers sdpa", ATTENTION, switch=True),
    **_unused("lowram highvram full_fp16 full_bf16 fp8_base no_half_vae fused_backward_pass", _MEMORY, switch=True),
    **_unused("torch_compile deepspeed ddp_gradient_as_bucket_view ddp_static_graph", _MEMORY, switch=True),
    **_unused("persistent_data_loader_workers", _LATENTS, switch=True),
    **_unused("max_data_loader_n_workers dynamo_backend", _MEMORY),
    **_unused("logging_dir log_prefix log_tracker_name wandb_run_name log_tracker_config wandb_api_key", _LOGS),
    **_unused("log_config console_log_simple", _LOGS, switch=True),
    **_unused("console_log_level console_log_file", _LOGS),
    "log_with": Flag(),
    **_unused("training_comment metadata_title metadata_author metadata_description metadata_license", _FILES),
    **_unused("metadata_tags", _FILES),
    **_unused("no_metadata", _FILES, switch=True),
    **_unused("huggingface_repo_id huggingface_repo_type huggingface_path_in_repo huggingface_token", _UPLOAD),
    **_unused("huggingface_repo_visibility", _UPLOAD),
    **_unused("save_state_to_huggingface resume_from_huggingface async_upload", _UPLOAD, switch=True),
    **_refused("config_file", "write its options as flags"),
    **_unused("output_config", "config.yaml in --output_dir has the options", switch=True),
    # optimizer
    "optimizer_type": Flag(default="AdamW"),
    "optimizer_args": Flag(several=True),
    "use_8bit_adam": Flag(default=False, switch=True, unused="the optimizer state is some kilobytes, in float32"),
    **_refused("use_lion_optimizer", "give --optimizer_type AdamW or Prodigy", switch=True),
    "learning_rate": Flag("training.learning_rate", 2e-6),
    "max_grad_norm": Flag("training.max_grad_norm", 1.0),
    "lr_scheduler": Flag("training.lr_scheduler", "constant", values=SCHEDULERS),
    **_refused("lr_scheduler_type lr_scheduler_args lr_decay_steps", "give one of --lr_scheduler"),
    "lr_warmup_steps": Flag("training.lr_warmup_steps", 0),  # updates on both sides
    "lr_scheduler_num_cycles": Flag("training.lr_num_cycles", 1),
    "lr_scheduler_power": Flag("training.lr_power", 1.0),
    # loss
    "noise_offset": Flag("loss.noise_offset", 0.0),
    "min_timestep": Flag("loss.min_timestep"),
    "max_timestep": Flag(),
    "loss_type": Flag("loss.loss_type", "l2"),
    "huber_c": Flag("loss.huber_c"),
    "min_snr_gamma": Flag("loss.min_snr_gamma", 0.0),
    **_refused("huber_schedule ip_noise_gamma multires_noise_iterations multires_noise_discount", "leave it out"),
    **_refused("adaptive_noise_scale v_pred_like_loss", "leave it out"),
    **_refused("noise_offset_random_strength", "leave it out", switch=True),
    "scale_v_pred_loss_like_noise_pred": Flag("loss.scale_v_pred_loss_like_noise_pred", False, switch=True),
    "debiased_estimation_loss": Flag("loss.debiased_estimation_loss", False, switch=True),
    "zero_terminal_snr": Flag("model.schedule.rescale_betas_zero_snr", switch=True),
    # sample images
    "sample_prompts": Flag(),
    "sample_every_n_steps": Flag("training.infer_interval", updates=True),
    "sample_sampler": Flag("sampling.sampler", values=_SAMPLERS),
    "sample_at_first": Flag(default=False, switch=True, unused="there are sample images of step 0"),
}
FIXED = {"run.cache_weights": True, "run.pooling": "end_of_text"}


def finish(translation: Translation) -> None:
    """Set what depends on several flags: data, size, file name, optimizer, schedule and sample images."""
    values = translation.values
    _templates(translation)
    _data(translation)
    _resolution(translation)
    masks = values["alpha_mask"] or values["masked_loss"]
    translation.set("data.masks", masks, "alpha_mask")
    if values["max_timestep"] is not None:
        translation.set("loss.max_timestep", translation.integer("max_timestep") - 1, "max_timestep")  # exclusive there
    suffix = values["save_model_as"]
    if suffix not in ("pt", "safetensors"):
        raise UserError(f"--save_model_as {suffix} is a PyTorch file under another name; give pt or safetensors")
    name = values["output_name"] or values["token_string"]
    translation.set("training.output_name", f"{name}.{suffix}", "output_name")
    if values["save_every_n_steps"] is None:
        translation.set("training.save_ckpt_interval", translation.options["training.total_step"])
    _optimizer(translation)
    if values["lr_scheduler"] == "constant" and str(values["lr_warmup_steps"]) != "0":
        translation.set("training.lr_warmup_steps", 0)
        translation.note_unused("lr_warmup_steps", "--lr_scheduler constant has no warm-up there, too")
    wants_images = values["sample_prompts"] is not None and values["sample_every_n_steps"] is not None
    translation.set("training.infer_during_train", wants_images)
    if wants_images:
        translation.set("training.validation_prompts", [values["sample_prompts"]], "sample_prompts")
    elif values["sample_prompts"] or values["sample_every_n_steps"]:
        translation.notes.append("sample images need both --sample_prompts and --sample_every_n_steps")
    translation.set("training.tensorboard", values["log_with"] in ("tensorboard", "all"), "log_with")


def _templates(translation: Translation) -> None:
    """Prompts are templates with one of the two flags, else captions."""
    is_object = translation.values["use_object_template"]
    is_style = translation.values["use_style_template"]
    translation.set("data.captions", not (is_object or is_style))
    flag = "use_object_template" if is_object else "use_style_template"  # the first wins there, too
    translation.set("concept.learnable_property", "style" if is_style and not is_object else "object", flag)
    if not (is_object or is_style):
        translation.notes.append("images without a caption get a template here, the name of their folder there")


def _data(translation: Translation) -> None:
    """Take the only subfolder `<repeats>_<class>`, the layout there, or the folder itself."""
    folder = Path(translation.values["train_data_dir"]).expanduser()
    matches = [
        (path, match[1])
        for path in (sorted(folder.iterdir()) if folder.is_dir() else ())
        if path.is_dir() and (match := re.match(r"(\d+)_", path.name))
    ]
    if len(matches) > 1:
        names = ", ".join(path.name for path, _ in matches)
        raise UserError(f"--train_data_dir {folder} has several folders of images ({names}); give one, or --concepts")
    translation.set("concept.data_path", str(matches[0][0] if matches else folder), "train_data_dir")
    if matches:
        translation.set("concept.repeats", matches[0][1])


def _resolution(translation: Translation) -> None:
    """Read `512` or `512,512`; with buckets the area counts."""
    text = translation.values["resolution"]
    if text is None:
        return
    try:
        sides = [int(side) for side in str(text).split(",")]
    except ValueError as error:
        raise UserError(f"--resolution {text!r} is not a side, or width,height, in pixels") from error
    width, height = sides[0], sides[-1]
    if width != height and not translation.values["enable_bucket"]:
        raise UserError(f"--resolution {text} is no square; give one side, or --enable_bucket")
    translation.set("data.resolution", int((width * height) ** 0.5) // 8 * 8, "resolution")


def _optimizer(translation: Translation) -> None:
    optimizer_type = str(translation.values["optimizer_type"])
    name = _OPTIMIZERS.get(optimizer_type.lower())
    if name is None:
        raise UserError(f"--optimizer_type {optimizer_type} has no counterpart here; give AdamW or Prodigy")
    translation.set("training.optimizer", name, "optimizer_type")
    translation.set("training.weight_decay", _DECAY[name])
    for argument in translation.values["optimizer_args"] or ():
        key, _, value = argument.partition("=")
        if key == "betas" and value.count(",") == 1:
            beta1, beta2 = value.strip("()").split(",")
            translation.set("training.adam_beta1", beta1.strip(), "optimizer_args")
            translation.set("training.adam_beta2", beta2.strip(), "optimizer_args")
        elif key in _OPTIMIZER_ARGUMENTS:
            translation.set(_OPTIMIZER_ARGUMENTS[key], value, "optimizer_args")
        else:
            raise UserError(f"--optimizer_args {argument} has no counterpart here; weight_decay, eps and betas have")


TEXTUAL_INVERSION = Program(
    name="kohya's train_textual_inversion.py",
    signatures=(frozenset({"--pretrained_model_name_or_path", "--token_string"}),),
    flags=FLAGS,
    fixed=FIXED,
    finish=finish,
)
