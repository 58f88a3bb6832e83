"""Synthetic scenes: repeatable, described correctly by their captions, without the held-out combinations."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from examples.tiny_sdxl import captions, colors, rendering, world
from examples.tiny_sdxl.concepts import CONFETTI, HUMBUG
from examples.tiny_sdxl.world import STYLES, THINGS
from gm.text.tokenizer import Tokenizer


def test_oklab_has_the_published_values_and_an_inverse() -> None:
    # Ottosson, 2020: white is (1, 0, 0); his table for sRGB red.
    np.testing.assert_allclose(colors.oklab((255, 255, 255)), (1, 0, 0), atol=1e-3)
    np.testing.assert_allclose(colors.oklab((255, 0, 0)), (0.62796, 0.22486, 0.12585), atol=1e-4)
    rgb = np.random.default_rng(0).uniform(0, 255, (100, 3))
    np.testing.assert_allclose(colors.srgb(colors.oklab(rgb)), rgb, atol=1e-6)


def test_scenes_are_repeatable_and_distinct() -> None:
    scenes = [world.scene(3, index) for index in range(200)]
    assert scenes == [world.scene(3, index) for index in range(200)]
    assert len({dataclasses.astuple(scene) for scene in scenes}) == 200
    assert world.scene(4, 0) != scenes[0]


@pytest.mark.parametrize("index", range(8))
def test_coverage_of_every_pixel_adds_up_to_one(index: int) -> None:
    shares = rendering.coverage(world.scene(1, index), 64)
    np.testing.assert_allclose(sum(shares.values()), np.ones((64, 64)), atol=1e-6)
    image = rendering.render(world.scene(1, index), 64)
    assert image.shape == (64, 64, 3)
    assert image.min() >= 0
    assert image.max() <= 255


def test_shapes_stay_inside_the_image() -> None:
    for index in range(100):
        scene = dataclasses.replace(world.scene(2, index), outline=None, spots=None)
        backdrop = rendering.coverage(scene, 64)["backdrop"]
        edges = np.concatenate([backdrop[0], backdrop[-1], backdrop[:, 0], backdrop[:, -1]])
        assert edges.min() > 0.5  # at most the tip of a star touches the edge


def test_two_colors_of_every_shape_are_held_out() -> None:
    pairs = {(s, c) for s in world.SHAPES for c in colors.COLORS if world.is_held_out(s, c)}
    assert [sum(s == shape for s, _ in pairs) for shape in world.SHAPES] == [2] * len(world.SHAPES)
    shown = {(s.shape, colors.nearest_name(s.fill)) for s in (world.scene(5, k) for k in range(2000))}
    assert not shown & pairs
    kept = {(s.shape, colors.nearest_name(s.fill)) for s in (world.scene(5, k, held_out=True) for k in range(100))}
    assert kept <= pairs
    assert len(shown) == len(world.SHAPES) * len(colors.COLORS) - len(pairs)


def test_captions_are_correct_and_use_known_words() -> None:
    known = set(" ".join(captions.every_word()).replace(",", " ").split())
    unsaid = 0
    for index in range(1000):
        scene = world.scene(6, index)
        text = captions.caption(scene, 6, index)
        assert text == captions.caption(scene, 6, index)
        if text is None:
            unsaid += 1
            continue
        words = text.replace(",", " ").split()
        assert set(words) <= known
        labs = (scene.fill, scene.backdrop, scene.stripes, scene.outline, scene.spots)
        assert {w for w in words if w in colors.COLORS} <= {colors.nearest_name(c) for c in labs if c is not None}
        assert {w for w in words if w in world.SHAPES} <= {scene.shape}
        assert {w for w in words if w in THINGS + STYLES} <= {scene.thing, scene.style}
        assert scene.stripes is not None or "striped" not in words
        assert scene.outline is not None or not {"outline", "outlines"} & set(words)
        assert scene.spots is not None or "spots" not in words
        assert scene.x < 0.5 or "left" not in words
        assert scene.y < 0.5 or "top" not in words
    assert 30 < unsaid < 100


def shared_fields(name: str, parts: tuple[str, ...]) -> tuple:
    return tuple(world.named(name)[part] for part in parts)


def test_scenes_with_a_named_thing_or_style_share_only_its_fields() -> None:
    scenes = [world.scene(6, index) for index in range(2000)]
    for field, names, shared in (
        ("thing", THINGS, ("shape", "fill", "stripes")),
        ("style", STYLES, ("outline", "spots")),
    ):
        shown = [scene for scene in scenes if getattr(scene, field)]
        assert 0.2 < len(shown) / len(scenes) < 0.33
        assert {getattr(scene, field) for scene in shown} == set(names)
        for name in names:
            own = [scene for scene in shown if getattr(scene, field) == name]
            assert {tuple(getattr(scene, part) for part in shared) for scene in own} <= {shared_fields(name, shared)}
            assert len({scene.backdrop for scene in own}) == len(own)
        assert len({shared_fields(name, shared) for name in names}) == len(names)
    assert not [scene for scene in scenes if scene.thing and scene.style]


def test_names_are_single_tokens_and_replace_the_description() -> None:
    tokenizer = Tokenizer()
    assert {len(tokenizer.encode(name)) for name in THINGS + STYLES} == {1}
    others = [text for text in captions.every_word() if text not in THINGS + STYLES]
    assert not set(" ".join(others).split()) & {*THINGS, *STYLES}
    scene = next(scene for scene in (world.scene(6, index) for index in range(200)) if scene.thing)
    spoken = [(captions.caption(scene, 6, sample) or "").split() for sample in range(200)]
    by_name = [words for words in spoken if scene.thing in words]
    assert 0.6 < len(by_name) / len(spoken) < 0.95
    assert not [words for words in by_name if "striped" in words or scene.shape in words]


def test_captions_of_a_scene_vary() -> None:
    scene = world.scene(6, 1)
    assert len({captions.caption(scene, 6, sample) for sample in range(50)}) > 30


@pytest.mark.parametrize("thing", [HUMBUG, CONFETTI])
def test_unseen_concepts_are_outside_the_training_distribution(thing) -> None:
    centres = np.array([colors.oklab(rgb) for rgb in colors.COLORS.values()])
    for lab in thing.lab.values():
        # The colors of the world scatter around their names with a standard deviation of 0.025 a coordinate.
        assert np.linalg.norm(centres - np.array(lab), axis=1).min() > 0.09
    for name in THINGS + STYLES:
        other = world.named(name)
        if set(thing.lab) <= set(other) and thing.shape in (None, other.get("shape")):
            assert np.linalg.norm([np.subtract(other[part], lab) for part, lab in thing.lab.items()]) > 0.15
    scenes = thing.scenes(5)
    assert len({scene.backdrop for scene in scenes}) == 5
    for name, lab in thing.lab.items():
        assert {getattr(scene, name) for scene in scenes} == {lab}
    assert len({scene.shape for scene in scenes}) == (1 if thing.learnable_property == "object" else 5)
