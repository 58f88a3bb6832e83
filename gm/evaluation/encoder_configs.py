"""config.json of transformers → the architecture of an image encoder; unsupported architectures are refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gm.config.image_encoder import CLIPConfig, ImageEncoderConfig
from gm.config.networks import TextEncoderConfig
from gm.errors import UserError

CLIP, DINO, DINOV2 = "clip", "vit", "dinov2"
TITLES = {CLIP: "CLIP", DINO: "DINO", DINOV2: "DINOv2"}
_SIZES = {384: "S", 768: "B", 1024: "L"}  # by width
# transformers' defaults, which its config.json may leave out.
_CLIP_IMAGE: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "patch_size": 32,
    "image_size": 224,
    "intermediate_size": 3072,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "num_channels": 3,
}
_CLIP_TEXT: dict[str, Any] = {
    "hidden_size": 512,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "intermediate_size": 2048,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "vocab_size": 49408,
    "max_position_embeddings": 77,
}
_DINO: dict[str, Any] = _CLIP_IMAGE | {
    "patch_size": 16,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "qkv_bias": True,
}
_DINOV2: dict[str, Any] = {
    **{key: value for key, value in _DINO.items() if key != "intermediate_size"},
    "layer_norm_eps": 1e-6,
    "mlp_ratio": 4,
    "use_swiglu_ffn": False,
}


def clip_config(values: Mapping[str, Any], image_size: int, path: object) -> CLIPConfig:
    """Return the architecture that the config.json of CLIP at `path` describes, for images of `image_size` pixels.

    `check_kind` has been called before. Raises UserError for another architecture.
    """
    # Older files have the overriding values of the two parts in entries of their own.
    image = _CLIP_IMAGE | dict(values.get("vision_config") or {}) | dict(values.get("vision_config_dict") or {})
    text = _CLIP_TEXT | dict(values.get("text_config") or {}) | dict(values.get("text_config_dict") or {})
    for part, name in ((image, "vision_config"), (text, "text_config")):
        width = _whole(part, "hidden_size", path)
        expected = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "intermediate_size": 4 * width}
        _check(part, expected, f"{path}: {name}.")
    width, layers, heads = _sizes(text, path)
    vocabulary, length = (_whole(text, key, path) for key in ("vocab_size", "max_position_embeddings"))
    encoder = TextEncoderConfig(width, layers, heads, vocabulary, length)
    projection = _whole({"projection_dim": 512, **values}, "projection_dim", path)
    return CLIPConfig(_image_encoder(image, image_size, path), encoder, projection)


def dino_config(values: Mapping[str, Any], image_size: int, path: object) -> ImageEncoderConfig:
    """Return the architecture that the config.json of DINO or DINOv2 at `path` describes; as `clip_config`."""
    kind = values["model_type"]
    encoder = (_DINO if kind == DINO else _DINOV2) | dict(values)
    expected: dict[str, Any] = {"hidden_act": "gelu", "qkv_bias": True}
    if kind == DINO:
        expected["intermediate_size"] = 4 * _whole(encoder, "hidden_size", path)
    else:
        expected |= {"mlp_ratio": 4, "use_swiglu_ffn": False}
    _check(encoder, expected, f"{path}: ")
    return _image_encoder(encoder, image_size, path, layer_scale=kind == DINOV2)


def title(values: Mapping[str, Any]) -> str:
    """Return the name of an encoder in tables, such as "DINO ViT-S/16"."""
    image = {**values, **(values.get("vision_config") or {})}
    width = image.get("hidden_size", 768)
    default = 32 if values.get("model_type") == CLIP else 16
    size = _SIZES.get(width, f"{width}")
    return f"{TITLES[values['model_type']]} ViT-{size}/{image.get('patch_size', default)}"


def _image_encoder(
    values: Mapping[str, Any], image_size: int, path: object, layer_scale: bool = False
) -> ImageEncoderConfig:
    _check(values, {"num_channels": 3}, f"{path}: ")
    patch = _whole(values, "patch_size", path)
    if image_size % patch:
        raise UserError(f"{path}: images of {image_size} pixels are no whole number of patches of {patch}")
    width, layers, heads = _sizes(values, path)
    epsilon = values["layer_norm_eps"]
    if not isinstance(epsilon, float) or not math.isfinite(epsilon):
        raise UserError(f"{path}: layer_norm_eps is {epsilon!r}; it must be a number")
    return ImageEncoderConfig(width, layers, heads, patch, image_size // patch, epsilon, layer_scale)


def _sizes(values: Mapping[str, Any], path: object) -> tuple[int, int, int]:
    """Return (width, layers, heads)."""
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads")
    width, layers, heads = (_whole(values, name, path) for name in names)
    if width % heads:
        raise UserError(f"{path}: hidden_size {width} is no multiple of num_attention_heads {heads}")
    return width, layers, heads


def check_kind(values: Mapping[str, Any], kinds: tuple[str, ...], path: object) -> str:
    """Return the model_type of the config.json at `path`; UserError if it is none of `kinds`."""
    kind = values.get("model_type")
    if kind not in kinds:
        known = " or ".join(f"{known!r} ({TITLES[known]})" for known in kinds)
        raise UserError(f"{path}: model_type is {kind!r}; it must be {known}")
    return str(kind)


def _check(values: Mapping[str, Any], expected: Mapping[str, Any], place: str) -> None:
    for key, value in expected.items():
        if values[key] != value:
            raise UserError(f"{place}{key} is {values[key]!r}, and only {value!r} is computed; choose another model")


def _whole(values: Mapping[str, Any], key: str, path: object) -> int:
    value = values[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{path}: {key} is {value!r}; it must be a whole number of at least 1")
    return value
