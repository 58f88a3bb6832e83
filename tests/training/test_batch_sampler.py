"""Batch sampler: epochs, uniform timesteps and prompts, the same run on any number of ranks."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from gm.training.batch_sampler import PromptChoice, Sample, samples

RUN = {
    "seed": 7,
    "batch": 2,
    "rank": 0,
    "world": 1,
    "buckets": [range(5)],
    "prompts": [PromptChoice(range(20))] * 5,
    "timesteps": (0, 1000),
    "flip": True,
}


def shown(steps, start=0, **changes):
    options = {**RUN, **changes}
    return [s for step in range(start, steps) for s in samples(step, **options)]


def test_same_arguments_same_samples():
    assert shown(30) == shown(30)
    assert shown(30)[40:] == shown(30, start=20)  # a resumed run needs no state


def test_another_seed_gives_other_samples():
    one, other = shown(50), shown(50, seed=8)
    for name in ("image", "flipped", "prompt", "timestep"):
        assert [getattr(s, name) for s in one] != [getattr(s, name) for s in other]


def test_samples_are_numbered_through_the_run():
    assert [s.index for s in shown(10, batch=3)] == list(range(30))
    assert [s.index for s in samples(4, **{**RUN, "batch": 3, "rank": 1, "world": 2})] == [27, 28, 29]


@pytest.mark.parametrize(("batch", "world"), [(1, 1), (2, 1), (3, 4), (16, 1), (2, 8)])
def test_each_epoch_has_every_image_once(batch, world):
    images = 5
    run = [
        s.image
        for step in range(40)
        for rank in range(world)
        for s in samples(step, **{**RUN, "batch": batch, "rank": rank, "world": world, "buckets": [range(images)]})
    ]
    assert len(run) == 40 * batch * world
    requests = set()
    for start in range(0, len(run) - images + 1, images):
        epoch = run[start : start + images]
        assert sorted(epoch) == list(range(images))
        requests.add(tuple(epoch))
    assert len(requests) >= min(8, len(run) // images - 1)  # each epoch has an order of its own


def test_every_order_of_three_images_is_about_equally_frequent():
    run = [s.image for s in shown(1800, batch=1, buckets=[range(3)])]
    requests = Counter(tuple(run[i : i + 3]) for i in range(0, len(run), 3))
    assert len(requests) == 6
    assert chi_square(list(requests.values())) < 20.5  # 5 degrees of freedom: exceeded once in a thousand


def test_one_image():
    assert {s.image for s in shown(5, batch=4, buckets=[range(1)])} == {0}


@pytest.mark.parametrize("world", [2, 4, 8])
def test_ranks_together_use_the_samples_of_one_rank(world):
    alone = shown(12, batch=16)
    together = []
    for step in range(12):
        for rank in range(world):
            together += samples(step, **{**RUN, "batch": 16 // world, "rank": rank, "world": world})
    assert together == alone


def test_batch_size_does_not_change_the_run():
    assert shown(24, batch=1) == shown(12, batch=2) == shown(4, batch=6)


def chi_square(counts):
    expected = sum(counts) / len(counts)
    return sum((c - expected) ** 2 for c in counts) / expected


def test_timesteps_are_uniform_over_the_whole_range():
    times = np.array([s.timestep for s in shown(3000, batch=2)])
    assert times.min() >= 0
    assert times.max() <= 999
    assert times.min() < 5
    assert times.max() > 994
    counts = np.histogram(times, bins=20, range=(0, 1000))[0]
    assert 4 < chi_square(counts) < 43.8  # 19 degrees of freedom: outside either way about once in a thousand


def test_templates_and_flips_are_uniform_and_independent():
    run = shown(3000, batch=2)
    templates = np.bincount([s.prompt for s in run], minlength=20)
    assert len(templates) == 20
    assert 4 < chi_square(templates) < 43.8
    columns = np.array([[s.flipped, s.prompt, s.timestep, s.image] for s in run], float)
    assert abs(columns[:, 0].mean() - 0.5) < 3.3 * 0.5 / len(run) ** 0.5
    correlation = np.corrcoef(columns.T) - np.eye(4)
    assert np.abs(correlation).max() < 3.6 / len(run) ** 0.5
    lagged = np.corrcoef(columns[:-1, 2], columns[1:, 2])[0, 1]
    assert abs(lagged) < 3.3 / len(run) ** 0.5


def test_single_choices():
    run = shown(20, prompts=[PromptChoice(range(1))] * 5, timesteps=(0, 1))
    assert {(s.prompt, s.timestep) for s in run} == {(0, 0)}


def test_without_flip_nothing_else_changes():
    with_flip, without = shown(50), shown(50, flip=False)
    assert any(s.flipped for s in with_flip)
    assert without == [replace(s, flipped=False) for s in with_flip]


def test_a_sample_holds_plain_numbers():
    (first, _) = samples(0, **RUN)
    assert isinstance(first, Sample)
    for name, kind in (("image", int), ("flipped", bool), ("prompt", int), ("timestep", int), ("index", int)):
        assert type(getattr(first, name)) is kind


def test_timesteps_stay_in_their_range_and_reach_its_ends():
    found = Counter(s.timestep for s in shown(2000, timesteps=(200, 210)))
    assert sorted(found) == list(range(200, 210))
    assert chi_square(list(found.values())) < 27.9  # 9 degrees of freedom: exceeded once in a thousand
    assert {s.timestep for s in shown(5, timesteps=(7, 8), bias=1.0)} == {7}


@pytest.mark.parametrize("bias", [-1.0, -0.3, 0.5, 2.0])
def test_bias_favors_one_end(bias):
    """Of u^a with u uniform, the mean is 1/(1 + a)."""
    found = np.array([s.timestep for s in shown(4000, timesteps=(100, 900), bias=bias)])
    assert found.min() >= 100
    assert found.max() < 900
    assert (found.mean() - 100) / 800 == pytest.approx(1 / (1 + np.exp(-bias)), abs=0.02)


@pytest.mark.parametrize(("share", "dropout"), [(0.0, 0.0), (0.3, 0.0), (0.0, 0.2), (0.4, 0.5), (1.0, 0.0), (0.5, 1.0)])
def test_captions_templates_and_the_token_alone_have_their_probabilities(share, dropout):
    """Images 0 and 2 have captions, numbers 20 and 21; 22 is the token alone."""
    choices = [PromptChoice(range(20), captions, 22, share, dropout) for captions in ([20], [], [21])]
    run = shown(3000, batch=1, buckets=[range(3)], prompts=choices)
    for image, caption in ((0, 20), (1, None), (2, 21)):
        found = np.array([s.prompt for s in run if s.image == image])
        kinds = [found == 22, found < 20, found == caption]
        assert sum(k.sum() for k in kinds) == len(found)
        rest = 1 - dropout
        expected = [dropout, rest, 0] if caption is None else [dropout, rest * share, rest * (1 - share)]
        np.testing.assert_allclose([k.mean() for k in kinds], expected, atol=0.06)
        if rest * share > 0.2:
            assert len(set(found[found < 20])) == 20


def test_each_caption_of_an_image_is_used_equally_often():
    choices = [PromptChoice(range(20), [20, 21, 22], 23, 0.25), PromptChoice(range(20), [24], 23)]
    run = shown(3000, batch=1, buckets=[range(2)], prompts=choices)
    found = Counter(s.prompt if s.prompt >= 20 else "template" for s in run if s.image == 0)
    assert {kind: count / 1500 for kind, count in found.items()} == pytest.approx(
        {20: 0.25, 21: 0.25, 22: 0.25, "template": 0.25}, abs=0.04
    )
    assert {s.prompt for s in run if s.image == 1} == {24}
    assert shown(3000, batch=1, buckets=[range(2)], prompts=choices) == run


def test_without_captions_and_dropout_only_templates_are_used():
    assert shown(40, prompts=[PromptChoice(range(20), [], 22, 0.7)] * 5) == shown(40)


def test_images_have_their_own_prompts_and_repeats():
    choices = [PromptChoice(range(20)), *[PromptChoice(range(20, 25))] * 2]
    run = shown(300, batch=2, buckets=[[0, 0, 1, 2]], prompts=choices)
    assert Counter(s.image for s in run) == {0: 300, 1: 150, 2: 150}
    assert all((s.prompt < 20) == (s.image == 0) for s in run)
    assert {s.prompt for s in run} == set(range(25))


def test_each_step_uses_one_bucket_and_all_images_equally_often():
    buckets = [[0, 3, 4], [1], [2, 5]]
    for batch, world in ((1, 1), (2, 1), (3, 2)):
        steps = []
        for step in range(60):
            options = {
                **RUN,
                "batch": batch,
                "world": world,
                "buckets": buckets,
                "prompts": [PromptChoice(range(20))] * 6,
            }
            steps.append([s.image for rank in range(world) for s in samples(step, **{**options, "rank": rank})])
        for images in steps:
            assert any(set(images) <= set(bucket) for bucket in buckets)
        times = Counter(image for images in steps for image in images)
        assert set(times.values()) == {10 * batch * world}
        for era in range(0, 60, 6):
            shown_ = Counter(next(k for k, b in enumerate(buckets) if p[0] in b) for p in steps[era : era + 6])
            assert shown_ == {0: 3, 1: 1, 2: 2}
        requests = {tuple(p[0] in buckets[0] for p in steps[era : era + 6]) for era in range(0, 60, 6)}
        assert len(requests) > 3
        of_first = [image for images in steps for image in images if image in buckets[0]]
        assert all(sorted(of_first[k : k + 3]) == [0, 3, 4] for k in range(0, len(of_first), 3))


def test_one_bucket_is_as_without_buckets():
    assert shown(9, buckets=[[0, 1, 2]]) == shown(9, buckets=[range(3)])
    assert [s.index for s in shown(6, batch=2, buckets=[[0], [1]])] == list(range(12))
