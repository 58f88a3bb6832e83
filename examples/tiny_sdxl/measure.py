"""Measure how the tiny model follows prompts and how textual inversion works on it.

python examples/tiny_sdxl/measure.py prompts
python examples/tiny_sdxl/measure.py concepts
python examples/tiny_sdxl/measure.py joint
python examples/tiny_sdxl/measure.py negative
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from examples.tiny_sdxl import evaluator, world
from examples.tiny_sdxl.colors import COLORS, nearest_name
from examples.tiny_sdxl.concepts import CONFETTI, HUMBUG, UnseenConcept
from examples.tiny_sdxl.world import SHAPES
from gm import api
from gm.api import Embedding, Toolkit
from gm.config import cli
from gm.config.parser import Parser

BACKDROPS = ("white", "blue", "yellow", "black")
STYLED = ("a red circle", "a blue star", "a yellow heart", "a black cross")
BATCH_SIZE = 16
CONCEPTS = (HUMBUG, CONFETTI)
NEGATIVE = "<not-that>"


def unseen_prompts() -> list[tuple[str, str, str]]:
    """Return (shape, color, backdrop) for every shape in the colors that training excluded."""
    pairs = [(shape, name) for shape in SHAPES for name in COLORS if world.is_held_out(shape, name)]
    return [(shape, name, backdrop) for shape, name in pairs for backdrop in BACKDROPS if backdrop != name]


def prompt_accuracy(toolkit: Toolkit, scenes: Sequence[tuple[str, str, str]]) -> dict[str, float]:
    """Return the shares of images whose shape, color and backdrop match the prompt."""
    prompts = [f"a {color} {shape} on a {backdrop} background" for shape, color, backdrop in scenes]
    images = api.generate(toolkit, prompts, batch_size=BATCH_SIZE)
    matches = []
    for image, (shape, color, backdrop) in zip(images, scenes, strict=True):
        seen = evaluator.parse_scene(image)
        matches.append((seen.shape == shape, nearest_name(seen.fill) == color, nearest_name(seen.backdrop) == backdrop))
    shares = np.mean(matches, axis=0)
    return {name: round(float(share), 3) for name, share in zip(("shape", "color", "backdrop"), shares, strict=True)}


def prompts_for(target: UnseenConcept, token: str, backdrop: str | None = None) -> list[str]:
    """Return four prompts that name the concept `token`, with a backdrop if one is given."""
    where = f" on a {backdrop} background" if backdrop else ""
    if target.learnable_property == "object":
        return [f"a {token}{where}"] * 4
    return [f"{scene}{where} in the style of {token}" for scene in STYLED]


def distances(
    toolkit: Toolkit, target: UnseenConcept, token: str, embeddings: Sequence[Embedding] = (), **sampling: Any
) -> np.ndarray:
    """Return the distances to `target` of 16 images of `token`, one per seed."""
    options = {"batch_size": BATCH_SIZE, "seed": 1000, **sampling}
    images = api.generate(toolkit, prompts_for(target, token) * 4, embeddings, **options)
    return np.array([evaluator.distance(image, target.colors, target.shape) for image in images])


def backdrop_accuracy(toolkit: Toolkit, target: UnseenConcept, embedding: Embedding) -> float:
    """Return the share of 16 images of the concept with the backdrop of the prompt."""
    names = [name for name in BACKDROPS for _ in range(4)]
    prompts = [prompt for name in BACKDROPS for prompt in prompts_for(target, target.placeholder_token, name)]
    images = api.generate(toolkit, prompts, [embedding], batch_size=BATCH_SIZE, seed=2000)
    seen = [nearest_name(evaluator.parse_scene(image).backdrop) for image in images]
    return float(np.mean([a == b for a, b in zip(seen, names, strict=True)]))


def train_concept(toolkit: Toolkit, target: UnseenConcept, num_vectors: int, **training: Any) -> Embedding:
    """Train `target` on its folder of images, with single `training` options replaced."""
    return api.train(
        toolkit,
        Path("datasets") / target.folder,
        target.placeholder_token,
        num_vectors=num_vectors,
        initializer_token=target.initializer_token,
        learnable_property=target.learnable_property,
        training=training,
    )


def concept_quality(
    toolkit: Toolkit, target: UnseenConcept, embedding: Embedding, before: np.ndarray | None = None
) -> dict[str, float]:
    """Return the median distances of the initializer token and of `embedding`, and the seeds where it halved.

    `before` are the distances of the initializer token, if known.
    """
    if before is None:
        before = distances(toolkit, target, target.initializer_token)
    after = distances(toolkit, target, target.placeholder_token, [embedding])
    return {
        "before": round(float(np.median(before)), 3),
        "after": round(float(np.median(after)), 3),
        "halved": int((after <= before / 2).sum()),
        "of": len(after),
        "backdrop": round(backdrop_accuracy(toolkit, target, embedding), 3),
    }


def concept_options(target: UnseenConcept, num_vectors: int) -> dict[str, Any]:
    """Return `target` as an entry of --concepts."""
    return {
        "placeholder_token": target.placeholder_token,
        "data_path": str(Path("datasets") / target.folder),
        "num_vectors": num_vectors,
        "initializer_token": target.initializer_token,
        "learnable_property": target.learnable_property,
    }


def train_jointly(toolkit: Toolkit, num_vectors: int, steps: int | None = None) -> list[Embedding]:
    """Train all of `CONCEPTS` in one run of `steps`, by default those of two runs."""
    total_step = steps or 2 * toolkit.config.training.total_step
    options = [concept_options(target, num_vectors) for target in CONCEPTS]
    return api.train_concepts(toolkit, options, training={"total_step": total_step})


def train_with_negative(toolkit: Toolkit, target: UnseenConcept, num_vectors: int, steps: int) -> list[Embedding]:
    """Train `target` and a negative concept with the same initializer token."""
    options = concept_options(target, num_vectors)
    negative = {**options, "placeholder_token": NEGATIVE, "data_path": "", "negative": True}
    return api.train_concepts(toolkit, [options, negative], training={"total_step": steps})


def negative_guidance(toolkit: Toolkit, target: UnseenConcept, num_vectors: int, steps: int) -> dict[str, float]:
    """Train `target` for `steps` alone and with a negative concept; return the median distances by CFG scale.

    "alone" has no negative prompt, "negative" has the negative concept as negative prompt.
    """
    alone = api.train_concepts(toolkit, [concept_options(target, num_vectors)], training={"total_step": steps})
    both = train_with_negative(toolkit, target, num_vectors, steps)
    medians = {}
    for scale in (1.0, 3.0, 6.0):
        for name, embeddings, prompt in (("alone", alone, ""), ("negative", both, NEGATIVE)):
            options = {"negative_prompt": prompt, "guidance_scale": scale}
            each = distances(toolkit, target, target.placeholder_token, embeddings, **options)
            medians[f"{name} {scale:g}"] = round(float(np.median(each)), 3)
    return medians


def main() -> None:
    parser = Parser("Measure how the tiny model follows prompts and how textual inversion works on it.")
    parser.add_argument("what", choices=("prompts", "concepts", "joint", "negative"), help="measurement")
    parser.add_config("configs/training/tiny_textual_inversion.yaml")
    parser.add_path("--weight", "(default: %(default)s)", default="checkpoints/tiny_sd_xl_base.safetensors")
    parser.add_argument("--ms_mode", type=int, choices=(0, 1), default=0, help="0 graph, 1 PyNative (default: 0)")
    parser.add_argument("--num_vectors", type=int, help="embedding vectors (default: that of the config)")
    parser.add_argument("--steps", type=int, help="training steps of negative (default: that of the config)")
    flags = parser.read()
    toolkit = api.load(flags["config"], run={"weight": flags["weight"], "ms_mode": flags["ms_mode"]})
    num_vectors = flags["num_vectors"] or toolkit.config.concept.num_vectors
    steps = flags["steps"] or toolkit.config.training.total_step
    if flags["what"] == "prompts":
        print(json.dumps(prompt_accuracy(toolkit, unseen_prompts())))
    elif flags["what"] == "joint":
        for target, embedding in zip(CONCEPTS, train_jointly(toolkit, num_vectors), strict=True):
            print_quality(toolkit, target, embedding)
    elif flags["what"] == "negative":
        for target in CONCEPTS:
            medians = negative_guidance(toolkit, target, num_vectors, steps)
            print(target.placeholder_token, json.dumps(medians), flush=True)
    else:
        for target in CONCEPTS:
            print_quality(toolkit, target, train_concept(toolkit, target, num_vectors))


def print_quality(toolkit: Toolkit, target: UnseenConcept, embedding: Embedding) -> None:
    print(target.placeholder_token, json.dumps(concept_quality(toolkit, target, embedding)), flush=True)


if __name__ == "__main__":
    cli.run(main)
