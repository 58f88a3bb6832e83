"""The judge reads images of the world back, and knows how far an image is from a thing."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import Image

from examples.tiny_sdxl import drawing, judge, world
from examples.tiny_sdxl.colours import nearest_name
from examples.tiny_sdxl.concepts import CONFETTI, HUMBUG
from examples.tiny_sdxl.world import Scene


def drawn(scene: Scene) -> np.ndarray:
    return drawing.image(scene, 64).round().astype(np.uint8)


def named(scene: Scene) -> tuple:
    colours = (scene.fill, scene.stripes, scene.outline, scene.backdrop, scene.spots)
    names = [None if lab is None else nearest_name(lab) for lab in colours]
    return (scene.shape, frozenset(names[:2]), *names[2:])


def test_it_reads_scenes_it_has_not_seen() -> None:
    scenes = [world.scene(11, index) for index in range(40)]
    seen = [judge.look(drawn(scene)) for scene in scenes]
    right = [named(a) == named(b) for a, b in zip(seen, scenes, strict=True)]
    assert np.mean(right) >= 0.95
    away = [(a.x - b.x, a.y - b.y, a.radius - b.radius) for a, b, ok in zip(seen, scenes, right, strict=True) if ok]
    assert np.abs(away).max() < 0.02


@pytest.mark.parametrize("thing", [HUMBUG, CONFETTI])
def test_distance_tells_the_thing_from_the_rest_of_the_world(thing) -> None:
    own = [judge.distance(drawn(scene), thing.colours, thing.shape) for scene in thing.scenes(6, seed=9)]
    others = [judge.distance(drawn(world.scene(12, k)), thing.colours, thing.shape) for k in range(6)]
    assert max(own) < 0.1
    assert min(others) > 3 * max(own)


def test_distance_grows_with_what_is_wrong() -> None:
    scene = HUMBUG.scenes(1)[0]
    salmon, violet = HUMBUG.colours.values()
    half = {"fill": salmon, "stripes": tuple((a + b) / 2 for a, b in zip(salmon, violet, strict=True))}
    image = drawn(scene)
    right, other = (judge.distance(image, colours, HUMBUG.shape) for colours in (HUMBUG.colours, half))
    assert right < 0.1 < other
    assert judge.distance(image, HUMBUG.colours, "cross") > 2 * right


def test_a_style_is_judged_by_its_own_colours_alone() -> None:
    for scene in CONFETTI.scenes(6, seed=9):
        own = judge.distance(drawn(scene), CONFETTI.colours)
        blurred = np.asarray(Image.fromarray(drawn(scene)).resize((22, 22)).resize((64, 64)))
        for part in CONFETTI.colours:
            lacking = judge.distance(drawn(dataclasses.replace(scene, **{part: None})), CONFETTI.colours)
            assert lacking > 0.3 > 2 * own
            assert lacking > judge.distance(blurred, CONFETTI.colours)
