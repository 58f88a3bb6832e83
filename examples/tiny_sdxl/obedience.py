"""Obedience: the share of what a prompt asks for beside the concept that its images show.

The prompts are hard for a trained embedding: each asks for several properties at once (size, place, colors of the
outline, the backdrop and its spots, a named thing or style), and some name a second trained concept. The scenes of the
tiny model have one shape, so no prompt asks for two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from examples.tiny_sdxl import evaluator
from examples.tiny_sdxl.colors import nearest_name
from examples.tiny_sdxl.concepts import CONFETTI, HUMBUG, UnseenConcept
from examples.tiny_sdxl.measure import BATCH_SIZE
from examples.tiny_sdxl.world import LARGE, SMALL, Scene, named
from gm import api
from gm.api import Embedding, Toolkit

SEEDS = 2  # images of each prompt
_MIDDLE = 0.03  # distance from the middle, as a share of the side, from which on a place is left, top, …
_RECOGNIZED = 0.4  # distance of the second concept up to which it is there; about 0.7 untrained, 0.2 well trained
_REGIONS = ("fill", "stripes", "outline", "backdrop", "spots")

# A prompt with {} for the concept, and what its images must show: the names of colors by region, a shape, a size, a
# place, a named thing or style, the other concept.
OBJECT_PROMPTS: tuple[tuple[str, dict[str, str]], ...] = (
    (
        "a {} with a black outline on a yellow background with blue spots",
        {"outline": "black", "backdrop": "yellow", "spots": "blue"},
    ),
    (
        "a small {} with a white outline at the top left on a green background",
        {"size": "small", "outline": "white", "place": "top left", "backdrop": "green"},
    ),
    (
        "a large {} on a white background with red spots",
        {"size": "large", "backdrop": "white", "spots": "red"},
    ),
    (
        "a small {} at the bottom right on a black background",
        {"size": "small", "place": "bottom right", "backdrop": "black"},
    ),
    ("a {} on a white background in the style of boston", {"backdrop": "white", "style": "boston"}),
    ("a small {} on a cyan background in the style of tokyo", {"size": "small", "backdrop": "cyan", "style": "tokyo"}),
    ("a {} on a blue background in the style of <confetti>", {"backdrop": "blue", "concept": "<confetti>"}),
    (
        "a small {} at the top right on a white background in the style of <confetti>",
        {"size": "small", "place": "top right", "backdrop": "white", "concept": "<confetti>"},
    ),
)
STYLE_PROMPTS: tuple[tuple[str, dict[str, str]], ...] = (
    (
        "a small blue and white striped star at the top left on a black background in the style of {}",
        {
            "size": "small",
            "fill": "blue",
            "stripes": "white",
            "shape": "star",
            "place": "top left",
            "backdrop": "black",
        },
    ),
    (
        "a large green heart on a white background in the style of {}",
        {"size": "large", "fill": "green", "shape": "heart", "backdrop": "white"},
    ),
    (
        "a small white circle at the bottom right on a blue background in the style of {}",
        {"size": "small", "fill": "white", "shape": "circle", "place": "bottom right", "backdrop": "blue"},
    ),
    (
        "a cyan and black striped square on a navy background in the style of {}",
        {"fill": "cyan", "stripes": "black", "shape": "square", "backdrop": "navy"},
    ),
    ("a grape on a white background in the style of {}", {"thing": "grape", "backdrop": "white"}),
    (
        "a small wolf at the top right, black background in the style of {}",
        {"size": "small", "thing": "wolf", "place": "top right", "backdrop": "black"},
    ),
    ("a <humbug> on a white background in the style of {}", {"concept": "<humbug>", "backdrop": "white"}),
    (
        "a small <humbug> at the bottom left on a black background in the style of {}",
        {"size": "small", "concept": "<humbug>", "place": "bottom left", "backdrop": "black"},
    ),
)
PROMPTS = {HUMBUG.placeholder_token: OBJECT_PROMPTS, CONFETTI.placeholder_token: STYLE_PROMPTS}
OTHER = {HUMBUG.placeholder_token: CONFETTI, CONFETTI.placeholder_token: HUMBUG}


def obedience(
    toolkit: Toolkit, target: UnseenConcept, text: str, embeddings: Sequence[Embedding], **sampling: Any
) -> float:
    """Return the mean share of properties that the images of `target`'s prompts show; `text` stands for the concept.

    `embeddings` hold the other concept, too; `sampling` are options of that config section.
    """
    prompts = [each for each in PROMPTS[target.placeholder_token] for _ in range(SEEDS)]
    texts = [prompt.format(text) for prompt, _ in prompts]
    images = api.generate(toolkit, texts, embeddings, batch_size=BATCH_SIZE, seed=3000, **sampling)
    other = OTHER[target.placeholder_token]
    shown = [matches(image, asked, other) for image, (_, asked) in zip(images, prompts, strict=True)]
    return float(np.mean([np.mean(each) for each in shown]))


def matches(image: np.ndarray, asked: Mapping[str, str], other: UnseenConcept) -> list[bool]:
    """Return for every property of `asked` whether `image` (uint8 [H, W, 3]) shows it.

    A named thing has its shape and two colors, a style two colors.
    """
    scene = evaluator.parse_scene(image)
    found = []
    for name, value in asked.items():
        if name == "concept":
            found.append(evaluator.distance(image, other.colors, other.shape) <= _RECOGNIZED)
        elif name == "size":
            # Half of the way to the other name: small is up to 0.23 of the side, large from 0.30.
            found.append((scene.radius < (SMALL + LARGE) / 2) == (value == "small"))
        elif name == "place":
            found.append(_place(scene) == value)
        elif name in ("thing", "style"):
            parts = {key: part for key, part in named(value).items() if key in (*_REGIONS, "shape")}
            found += [_shows(scene, key, part if key == "shape" else nearest_name(part)) for key, part in parts.items()]
        else:
            found.append(_shows(scene, name, value))
    return found


def _shows(scene: Scene, part: str, name: str) -> bool:
    if part == "shape":
        return scene.shape == name
    # Which of a shape's two colors is that of the stripes cannot be seen.
    regions = ("fill", "stripes") if part in ("fill", "stripes") else (part,)
    colors = [getattr(scene, region) for region in regions]
    return name in [nearest_name(color) for color in colors if color is not None]


def _place(scene: Scene) -> str:
    across = "left" if scene.x < 0.5 - _MIDDLE else "right" if scene.x > 0.5 + _MIDDLE else ""
    down = "top" if scene.y < 0.5 - _MIDDLE else "bottom" if scene.y > 0.5 + _MIDDLE else ""
    return f"{down} {across}"
