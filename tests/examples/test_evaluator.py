"""The evaluator recovers scenes from images, and measures the distance to a concept."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import Image

from examples.tiny_sdxl import evaluator, rendering, world
from examples.tiny_sdxl.colors import nearest_name
from examples.tiny_sdxl.concepts import CONFETTI, HUMBUG
from examples.tiny_sdxl.world import Scene


def rendered(scene: Scene) -> np.ndarray:
    return rendering.render(scene, 64).round().astype(np.uint8)


def named(scene: Scene) -> tuple:
    colors = (scene.fill, scene.stripes, scene.outline, scene.backdrop, scene.spots)
    names = [None if lab is None else nearest_name(lab) for lab in colors]
    return (scene.shape, frozenset(names[:2]), *names[2:])


def test_scenes_are_recovered_from_their_images() -> None:
    scenes = [world.scene(11, index) for index in range(40)]
    seen = [evaluator.parse_scene(rendered(scene)) for scene in scenes]
    right = [named(a) == named(b) for a, b in zip(seen, scenes, strict=True)]
    assert np.mean(right) >= 0.95
    away = [(a.x - b.x, a.y - b.y, a.radius - b.radius) for a, b, ok in zip(seen, scenes, right, strict=True) if ok]
    assert np.abs(away).max() < 0.02


@pytest.mark.parametrize("thing", [HUMBUG, CONFETTI])
def test_distance_separates_the_concept_from_other_scenes(thing) -> None:
    own = [evaluator.distance(rendered(scene), thing.colors, thing.shape) for scene in thing.scenes(6, seed=9)]
    others = [evaluator.distance(rendered(world.scene(12, k)), thing.colors, thing.shape) for k in range(6)]
    assert max(own) < 0.1
    assert min(others) > 3 * max(own)


def test_distance_grows_with_the_error() -> None:
    scene = HUMBUG.scenes(1)[0]
    salmon, violet = HUMBUG.colors.values()
    half = {"fill": salmon, "stripes": tuple((a + b) / 2 for a, b in zip(salmon, violet, strict=True))}
    image = rendered(scene)
    right, other = (evaluator.distance(image, colors, HUMBUG.shape) for colors in (HUMBUG.colors, half))
    assert right < 0.1 < other
    assert evaluator.distance(image, HUMBUG.colors, "cross") > 2 * right


def test_distance_of_a_style_depends_on_its_colors_only() -> None:
    for scene in CONFETTI.scenes(6, seed=9):
        own = evaluator.distance(rendered(scene), CONFETTI.colors)
        blurred = np.asarray(Image.fromarray(rendered(scene)).resize((22, 22)).resize((64, 64)))
        for part in CONFETTI.colors:
            lacking = evaluator.distance(rendered(dataclasses.replace(scene, **{part: None})), CONFETTI.colors)
            assert lacking > 0.3 > 2 * own
            assert lacking > evaluator.distance(blurred, CONFETTI.colors)
