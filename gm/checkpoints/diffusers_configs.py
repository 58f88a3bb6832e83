"""Configs of a diffusers folder: what those of networks, scheduler, tokenizers and pipeline say of the model."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gm.checkpoints.accepted_values import accepted_scheduler
from gm.checkpoints.statements import Statement
from gm.config.model import ScheduleConfig
from gm.errors import UserError

_SCHEDULER = "scheduler_config.json"
_TOKENIZER = "tokenizer_config.json"
_PAD_TOKENS = {"tokenizer": ("<|endoftext|>",), "tokenizer_2": ("!",)}
_PAD_TOKENS_OF_ONE = {"tokenizer": ("<|endoftext|>", "!")}  # of Stable Diffusion 1, and of 2
_SPECIAL_TOKENS = ("<|startoftext|>", "<|endoftext|>", "!")
# Fields without an effect on results here: names, versions, memory, precision (ours is an option) and training.
_WITHOUT_EFFECT = re.compile(
    r"_.*(?<!_class_name)|sample_size|dropout|upcast_attention|force_upcast|addition_embed_type_num_heads|mid_block_type"
    r"|(down|up)_block_types|decay|inv_gamma|min_decay|optimization_step|power|update_after_step|use_ema_warmup"
)
# Fields of a text encoder; the others are transformers' own, such as how a language model generates text.
_TEXT_FIELDS = (
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "layer_norm_eps",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "projection_dim",
    "quantization_config",
    "vocab_size",
)
# A sampler whose settings are others than those of SDXL base is said not to be used.
_SAMPLER_SETTINGS = {
    "_class_name": ("EulerDiscreteScheduler",),
    "timestep_spacing": ("leading",),
    **dict.fromkeys(("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "thresholding"), (False,)),
    **dict.fromkeys(("sigma_min", "sigma_max"), ()),
}


def read(folder: Path, networks: Sequence[str]) -> list[Statement]:
    """Return the statements in the configs of `networks`, of the scheduler and of the pipeline in `folder`, if present.

    Raises UserError for a config that is not a JSON object.
    """
    is_sdxl = "text_encoder_2" in networks
    statements = [
        *_read_pipeline(folder / "model_index.json", is_sdxl),
        *_read_scheduler(folder / "scheduler" / _SCHEDULER),
        *_read_tokenizers(folder, _PAD_TOKENS if is_sdxl else _PAD_TOKENS_OF_ONE),
    ]
    for network in networks:
        statements += read_network(folder / network, network)
    return statements


def read_network(folder: Path, network: str) -> list[Statement]:
    """Return the statements of the config in the folder of a network; UserError as of `read`."""
    is_known = _TEXT_FIELDS.__contains__ if network.startswith("text_encoder") else _has_effect
    return [
        Statement(f"{network}.{field}", value, f"{folder.name}/config.json")
        for field, value in read_json(folder / "config.json").items()
        if value is not None and is_known(field)
    ]


def _has_effect(field: str) -> bool:
    return not _WITHOUT_EFFECT.fullmatch(field)


def _read_scheduler(path: Path) -> Iterator[Statement]:
    """Yield the statements about the model; the others are settings of a sampler, which are options here."""
    place = f"scheduler/{path.name}"
    fields = read_json(path)
    known = accepted_scheduler(ScheduleConfig())
    for field, value in fields.items():
        if value is not None and field in known:
            yield Statement(f"scheduler.{field}", value, place)
    settings = [
        f"{field} {json.dumps(fields[field])}"
        for field, usual in _SAMPLER_SETTINGS.items()
        if fields.get(field) is not None and fields[field] not in usual
    ]
    if settings:
        yield Statement("scheduler.sampler", f"{', '.join(settings)} (--sampler and --schedule choose)", place)


def _read_pipeline(path: Path, is_sdxl: bool) -> Iterator[Statement]:
    """Yield what changes images although the networks are the same, and the network that checks them."""
    fields = read_json(path)
    base = is_sdxl and fields.get("requires_aesthetics_score") is not True
    safety_checker = fields.get("safety_checker")
    if isinstance(safety_checker, list) and None not in safety_checker:
        yield Statement("pipeline.safety_checker", safety_checker[-1], path.name)
    if base and fields.get("force_zeros_for_empty_prompt") is False:
        yield Statement("pipeline.force_zeros_for_empty_prompt", False, path.name)
    class_ = fields.get("_class_name")
    if isinstance(class_, str) and not re.match(
        r".*StableDiffusionXL" if is_sdxl else r".*StableDiffusion(?!XL)", class_
    ):
        yield Statement("pipeline._class_name", class_, path.name)


def _read_tokenizers(folder: Path, pad_tokens: Mapping[str, tuple[str, ...]]) -> Iterator[Statement]:
    """Yield added tokens, whose vectors in the token tables are left out, and another padding than the toolkit's."""
    for tokenizer, usual in pad_tokens.items():
        fields = read_json(folder / tokenizer / _TOKENIZER)
        token = fields.get("pad_token")
        token = token.get("content") if isinstance(token, dict) else token
        if token not in (None, *usual):
            yield Statement(f"{tokenizer}.pad_token", token, f"{tokenizer}/{_TOKENIZER}")
        added = [each for each in _added_tokens(folder / tokenizer) if each not in _SPECIAL_TOKENS]
        if added:
            yield Statement(f"{tokenizer}.added_tokens", " ".join(added), tokenizer)


def _added_tokens(folder: Path) -> list[str]:
    """Return the tokens added to a tokenizer: since version 5 transformers has them in tokenizer.json."""
    entries = read_json(folder / "tokenizer.json").get("added_tokens")
    listed = [entry.get("content") for entry in entries or [] if isinstance(entry, dict)]
    return [*read_json(folder / "added_tokens.json"), *(token for token in listed if isinstance(token, str))]


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object at `path`, {} if there is none; UserError for another content."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a config in JSON; download or copy it again") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a config in JSON; download or copy it again")
    return value
