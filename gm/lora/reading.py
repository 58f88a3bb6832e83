"""The tensors of a LoRA file by module, in any layout: kohya's, diffusers', PEFT's, LyCORIS', mindone's."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gm.checkpoints import containers
from gm.checkpoints.lazy_tensor import LazyTensor
from gm.errors import UserError, shorten

# Ends of keys, by the part of a module's change that they hold. PEFT's keys may name the adapter: `.lora_A.default.`.
_LOW_RANK = r"(?:\.lora_{0}|\.lora_{1}(?:\.\w+)?|\.lora\.{0}|_lora\.{0}|\.lora_linear_layer\.{0})\.weight"
_PARTS = {
    "down": _LOW_RANK.format("down", "A"),
    "up": _LOW_RANK.format("up", "B"),
    "mid": r"\.lora_mid\.weight",
    "alpha": r"\.alpha",
    "dora_scale": r"\.dora_scale",
    "magnitude": r"\.lora_magnitude_vector(?:\.\w+){0,2}",
    **{name: rf"\.{name}" for name in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")},
    **{name: rf"\.{name}" for name in ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b")},
    "lokr_t2": r"\.lokr_t2",
}
_KEY = re.compile(r"(?P<module>.+?)(?:" + "|".join(f"(?P<{name}>{end})" for name, end in _PARTS.items()) + ")")
_OTHER_METHODS = {
    "IA³ (LyCORIS)": r".*\.on_input",
    "GLoRA (LyCORIS)": r".*\.[ab][12]\.weight",
    "OFT or BOFT": r".*\.oft_\w+(\.\w+)*",
    "whole weights in place of factors (LyCORIS full)": r".*\.(diff|diff_b|set_weight)",
    "changes of normalisations (LyCORIS)": r".*\.[wb]_norm",
    "changes of biases (PEFT's lora_bias)": r".*\.lora_(B(\.\w+)?|up)\.bias",
    "factors without the names of their layers (cloneofsimo/lora)": r"\w+:\d+:(up|down)",
}
_BUNDLED = re.compile(r"bundle_emb\.(?P<token>.+?)\.(string_to_param\..+|[^.]+)")
_METADATA_OF_PEFT = "lora_adapter_metadata"  # diffusers from 0.34: PEFT's config of each network


@dataclass(frozen=True)
class Module:
    """The change of one module: tensors by part, and α and the kind of scale if the file's metadata give them."""

    name: str
    parts: dict[str, LazyTensor]
    alpha: float | None = None
    rank_stabilized: bool = False


@dataclass(frozen=True)
class LoraContent:
    """A LoRA file: its modules, the keys of other tensors, the placeholder tokens of embeddings in it, and metadata."""

    modules: list[Module]
    other_keys: list[str]
    embeddings: list[str]
    metadata: dict[str, str] = field(default_factory=dict)


def read(path: Path) -> LoraContent:
    """Return the content of the file at `path`; no tensor is read yet.

    Raises UserError for a file that cannot be read, changes that are written in another way (named), two tensors for
    one part of a module, and metadata of PEFT that are damaged.
    """
    file = containers.read_weights(path)
    _refuse_other_methods(path, file.tensors)
    configs = _peft_configs(path, file.metadata)
    parts: dict[str, dict[str, LazyTensor]] = {}
    content = LoraContent([], [], [], file.metadata)
    for key, tensor in file.tensors.items():
        match = _KEY.fullmatch(key)
        if bundled := _BUNDLED.fullmatch(key):
            if bundled["token"] not in content.embeddings:
                content.embeddings.append(bundled["token"])
        elif match is None or match.lastgroup is None:
            content.other_keys.append(key)
        else:
            part = str(match.lastgroup)
            module = parts.setdefault(match["module"], {})
            if part in module:
                raise UserError(
                    f"{path} holds two LoRAs for {match['module']} ({key} is the second); give files of one each"
                )
            module[part] = tensor
    for name, tensors in parts.items():
        content.modules.append(Module(name, tensors, *_scale_of_peft(configs, name)))
    return content


def _refuse_other_methods(path: Path, tensors: Mapping[str, LazyTensor]) -> None:
    for title, pattern in _OTHER_METHODS.items():
        keys = [key for key in tensors if re.fullmatch(pattern, key)]
        if keys:
            raise UserError(
                f"{path} holds {title}, such as {shorten(keys[0])}, which is not supported; use a LoRA, LoCon, LoHa, "
                "LoKr or DoRA"
            )


def _peft_configs(path: Path, metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return PEFT's config of each network, by the prefix of its keys.

    diffusers stores them in the file's metadata, each name with the prefix of the network (`unet.lora_alpha`); PEFT
    itself as `adapter_config.json` beside the file.
    """
    try:
        if _METADATA_OF_PEFT in metadata:
            values = json.loads(metadata[_METADATA_OF_PEFT])
            names = {name: name.partition(".") for name in values}
            configs: dict[str, dict[str, Any]] = {prefix: {} for prefix, dot, _ in names.values() if dot}
            for name, (prefix, dot, rest) in names.items():
                if dot:
                    configs[prefix][rest] = values[name]
            return {f"{prefix}.": config for prefix, config in configs.items()}
        beside = path.parent / "adapter_config.json"
        if path.name.startswith("adapter_model.") and beside.is_file():
            return {"": dict(json.loads(beside.read_text(encoding="utf-8")))}
    except (ValueError, TypeError, OSError, RecursionError) as error:
        raise UserError(f"{path}: PEFT's config is damaged ({shorten(error)}); copy the file again") from error
    return {}


def _scale_of_peft(configs: Mapping[str, Mapping[str, Any]], module: str) -> tuple[float | None, bool]:
    """Return α of a module by PEFT's config, None without one, and whether it is divided by √r.

    `alpha_pattern` has the α of single modules, by the end of their path as a regular expression
    (peft/utils/other.py, `get_pattern_key`).
    """
    for prefix, config in configs.items():
        if not module.startswith(prefix) or "lora_alpha" not in config:
            continue
        alpha = config["lora_alpha"]
        path = module.removeprefix(prefix).removeprefix("base_model.model.")
        patterns = config.get("alpha_pattern")
        for pattern, value in patterns.items() if isinstance(patterns, dict) else ():
            try:
                if re.fullmatch(rf"(.*\.)?({pattern})", path):
                    alpha = value
                    break
            except re.error:
                continue
        if isinstance(alpha, int | float):
            return float(alpha), bool(config.get("use_rslora"))
    return None, False
