"""Image encoders with random weights as folders of the Hub: config.json, preprocessor_config.json, model.safetensors.

Their keys are written from the published files' names, not from our networks.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from gm.checkpoints import containers
from gm.checkpoints.lazy_tensor import in_memory
from gm.runtime import rng

Shapes = dict[str, tuple[int, ...]]

WIDTH, LAYERS, HEADS = 32, 2, 2
TEXT_WIDTH, PROJECTION = 16, 24
CLIP_B32, CLIP_L14 = "clip-vit-b-32", "clip-vit-l-14"
DINO_S16, DINOV2_B14 = "dino-vit-s-16", "dinov2-vit-b-14"
NAMES = (CLIP_B32, CLIP_L14, DINO_S16, DINOV2_B14)
PATCH = {CLIP_B32: 32, CLIP_L14: 14, DINO_S16: 16, DINOV2_B14: 14}
GRID = {CLIP_B32: 2, CLIP_L14: 4, DINO_S16: 3, DINOV2_B14: 5}  # of the position embeddings
SEEN = {**GRID, DINOV2_B14: 3}  # patches along a side of the images: DINOv2's positions are interpolated
_IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
_CLIP_MOMENTS = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}


def write(folder: Path, name: str) -> Path:
    """Write the encoder `name` to `folder` and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config(name)))
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor(name)))
    weights = {key: in_memory(random_values(key, shape)) for key, shape in shapes(name).items()}
    containers.write(folder / "model.safetensors", weights, {"format": "pt"})
    return folder


def random_values(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return weights that about preserve the variance of activations; those of norms and scales are about 1."""
    noise = rng.normal(shape, 3, key)
    if key.endswith("lambda1") or ("norm" in key and key.endswith("weight")) or "layrnorm.weight" in key:
        return (1 + 0.2 * noise).astype(np.float32)
    if len(shape) >= 2 and "embedding" not in key:
        return (noise / np.prod(shape[1:]) ** 0.5).astype(np.float32)
    return (0.3 * noise).astype(np.float32)


def config(name: str) -> dict[str, Any]:
    sizes: dict[str, Any] = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    image = {**sizes, "patch_size": PATCH[name], "image_size": GRID[name] * PATCH[name]}
    if name == DINOV2_B14:
        return {"model_type": "dinov2", "mlp_ratio": 4, "layer_norm_eps": 1e-6, **image}
    image["intermediate_size"] = 4 * WIDTH
    if name == DINO_S16:
        return {"model_type": "vit", "qkv_bias": True, "hidden_act": "gelu", "layer_norm_eps": 1e-12, **image}
    text = {**sizes, "hidden_size": TEXT_WIDTH, "intermediate_size": 4 * TEXT_WIDTH, "eos_token_id": 2}
    return {"model_type": "clip", "projection_dim": PROJECTION, "vision_config": image, "text_config": text}


def preprocessor(name: str) -> dict[str, Any]:
    """Return what the published file has, for smaller images."""
    side = SEEN[name] * PATCH[name]
    if name == DINO_S16:
        return {"do_normalize": True, "do_resize": True, "resample": 2, "size": side, **_IMAGENET}
    shared = {"do_center_crop": True, "do_normalize": True, "do_resize": True, "resample": 3}
    if name == DINOV2_B14:
        sizes: dict[str, Any] = {
            "crop_size": {"height": side, "width": side},
            "size": {"shortest_edge": side + 6},
            "rescale_factor": 1 / 255,
        }
        return {**shared, **sizes, **_IMAGENET}
    return {**shared, "crop_size": side, "size": side, **_CLIP_MOMENTS}


def shapes(name: str) -> Shapes:
    """Return the shape of every tensor of the published file."""
    return _dino_shapes(name) if name in (DINO_S16, DINOV2_B14) else _clip_shapes(name)


def _norm(prefix: str, width: int) -> Shapes:
    return {f"{prefix}.weight": (width,), f"{prefix}.bias": (width,)}


def _linear(prefix: str, outputs: int, inputs: int) -> Shapes:
    return {f"{prefix}.weight": (outputs, inputs), f"{prefix}.bias": (outputs,)}


def _clip_shapes(name: str) -> Shapes:
    patch = PATCH[name]
    return {
        "logit_scale": (),
        "text_model.embeddings.token_embedding.weight": (49408, TEXT_WIDTH),
        "text_model.embeddings.position_embedding.weight": (77, TEXT_WIDTH),
        **_clip_layers("text_model", TEXT_WIDTH),
        **_norm("text_model.final_layer_norm", TEXT_WIDTH),
        "vision_model.embeddings.class_embedding": (WIDTH,),
        "vision_model.embeddings.patch_embedding.weight": (WIDTH, 3, patch, patch),
        "vision_model.embeddings.position_embedding.weight": (GRID[name] ** 2 + 1, WIDTH),
        **_norm("vision_model.pre_layrnorm", WIDTH),
        **_clip_layers("vision_model", WIDTH),
        **_norm("vision_model.post_layernorm", WIDTH),
        "visual_projection.weight": (PROJECTION, WIDTH),
        "text_projection.weight": (PROJECTION, TEXT_WIDTH),
    }


def _clip_layers(model: str, width: int) -> Shapes:
    result: Shapes = {}
    for layer in range(LAYERS):
        prefix = f"{model}.encoder.layers.{layer}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            result |= _linear(f"{prefix}.self_attn.{name}", width, width)
        result |= _norm(f"{prefix}.layer_norm1", width) | _norm(f"{prefix}.layer_norm2", width)
        result |= _linear(f"{prefix}.mlp.fc1", 4 * width, width) | _linear(f"{prefix}.mlp.fc2", width, 4 * width)
    return result


def _dino_shapes(name: str) -> Shapes:
    patch = PATCH[name]
    result: Shapes = {
        "embeddings.cls_token": (1, 1, WIDTH),
        "embeddings.position_embeddings": (1, GRID[name] ** 2 + 1, WIDTH),
        "embeddings.patch_embeddings.projection.weight": (WIDTH, 3, patch, patch),
        "embeddings.patch_embeddings.projection.bias": (WIDTH,),
        **_norm("layernorm", WIDTH),
    }
    if name == DINOV2_B14:
        result["embeddings.mask_token"] = (1, WIDTH)
    for layer in range(LAYERS):
        prefix = f"encoder.layer.{layer}"
        for part in ("query", "key", "value"):
            result |= _linear(f"{prefix}.attention.attention.{part}", WIDTH, WIDTH)
        result |= _linear(f"{prefix}.attention.output.dense", WIDTH, WIDTH)
        if name == DINO_S16:
            result |= _norm(f"{prefix}.layernorm_before", WIDTH) | _norm(f"{prefix}.layernorm_after", WIDTH)
            result |= _linear(f"{prefix}.intermediate.dense", 4 * WIDTH, WIDTH)
            result |= _linear(f"{prefix}.output.dense", WIDTH, 4 * WIDTH)
        else:
            result |= _norm(f"{prefix}.norm1", WIDTH) | _norm(f"{prefix}.norm2", WIDTH)
            result |= {f"{prefix}.layer_scale{k}.lambda1": (WIDTH,) for k in (1, 2)}
            result |= _linear(f"{prefix}.mlp.fc1", 4 * WIDTH, WIDTH) | _linear(f"{prefix}.mlp.fc2", WIDTH, 4 * WIDTH)
    return result
