"""Preprocessing from preprocessor_config.json."""

from __future__ import annotations

import re
from typing import Any

import pytest

from gm.errors import UserError
from gm.evaluation import preprocessing
from gm.evaluation.encoder_configs import CLIP, DINO, DINOV2
from gm.evaluation.preprocessing import PUBLISHED, Preprocessing


def sizes(steps: Preprocessing) -> tuple[int, int, int]:
    return steps.shortest_edge, steps.size, int(steps.resample)


@pytest.mark.parametrize(("kind", "expected"), [(CLIP, (224, 224, 3)), (DINO, (0, 224, 2)), (DINOV2, (256, 224, 3))])
def test_without_a_file_it_is_the_published_one(kind: str, expected: tuple[int, int, int]) -> None:
    assert sizes(preprocessing.read({}, kind, "p.json")) == expected
    # entries of the processor that change no pixel
    named = {"image_processor_type": "Any", "do_convert_rgb": True, "feature_extractor_type": "Any"}
    assert preprocessing.read(named, kind, "p.json") == PUBLISHED[kind]


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        (CLIP, {"size": 336, "crop_size": 336}, (336, 336, 3)),
        (CLIP, {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}, (336, 336, 3)),
        (DINO, {"size": 384, "resample": 3}, (0, 384, 3)),
        (DINO, {"size": {"height": 384, "width": 384}}, (0, 384, 2)),
        (DINO, {"do_center_crop": True, "size": {"shortest_edge": 256}, "crop_size": 224}, (256, 224, 2)),
        (DINOV2, {"size": {"shortest_edge": 518}, "crop_size": 518}, (518, 518, 3)),
    ],
)
def test_sizes_of_older_and_newer_files(kind: str, values: dict[str, Any], expected: tuple[int, int, int]) -> None:
    assert sizes(preprocessing.read(values, kind, "p.json")) == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"do_normalize": False}, "p.json: do_normalize is False, and only true is computed"),
        ({"size": {"height": 224, "width": 192}}, "p.json: size is {'height': 224, 'width': 192}; only squares"),
        ({"size": 200}, "crop_size 224 is larger than size 200"),
        ({"size": [224, 224]}, "size is [224, 224]; only squares are computed"),
        ({"do_center_crop": False, "size": {"shortest_edge": 224}}, "keep their shape (do_center_crop false)"),
        ({"size": {"height": 256, "width": 256}}, "a crop of images that are squashed"),
        ({"image_mean": "grey"}, "has a value that is not one of image_mean"),
        ({"image_std": [1, 1, 0]}, "image_std above 0"),
        ({"resample": 17}, "17 is not a valid Resampling"),
    ],
)
def test_what_is_not_computed_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        preprocessing.read({"crop_size": 224, **values}, CLIP, "p.json")
