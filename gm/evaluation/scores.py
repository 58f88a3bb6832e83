"""Scores of generated images: CLIP-I and DINO compare them with real images, CLIP-T with their prompts.

All are cosines of features (Ruiz et al., 2023, section 4.1): CLIP-I and DINO are the mean over all pairs of a generated
and a real image, CLIP-T that over all generated images with the text of their prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from gm.evaluation.encoders import ImageEncoder
from gm.runtime.backend import Backend

CLIP_I, CLIP_T, DINO = "CLIP-I", "CLIP-T", "DINO"
TRAINING, HELD_OUT = "training", "held-out"  # the real images of a score
Metric = tuple[str, str]  # CLIP-I or DINO with its real images, or CLIP-T with ""

RealImages = Mapping[str, Sequence[Image.Image]]  # by TRAINING and HELD_OUT


@dataclass(frozen=True)
class Encoders:
    """The encoders of an evaluation; one that is not wanted is None."""

    clip: ImageEncoder | None
    dino: ImageEncoder | None

    @property
    def of_images(self) -> dict[str, ImageEncoder]:
        """The encoder of each metric that compares images."""
        both = {CLIP_I: self.clip, DINO: self.dino}
        return {name: encoder for name, encoder in both.items() if encoder is not None}


class Scorer:
    """Scores images against the same real ones, whose features are computed once."""

    def __init__(self, encoders: Encoders, real: RealImages, backend: Backend) -> None:
        self.encoders = encoders
        self.backend = backend
        self.real = {
            (name, kind): encoder.image_features(images, backend)
            for name, encoder in encoders.of_images.items()
            for kind, images in real.items()
        }

    def metrics(self) -> list[Metric]:
        """Return the metrics in the order of the tables."""
        return [*self.real, *([(CLIP_T, "")] if self.encoders.clip else [])]

    def score(self, images: Sequence[Image.Image], texts: Sequence[str]) -> dict[Metric, np.ndarray]:
        """Return the score of each image by metric, float64 [N]; `texts` are those of the images' prompts."""
        result: dict[Metric, np.ndarray] = {}
        for name, encoder in self.encoders.of_images.items():
            features = encoder.image_features(images, self.backend)
            for (metric, kind), real in self.real.items():
                if metric == name:
                    result[metric, kind] = mean_cosines(features, real)
            if name == CLIP_I:
                result[CLIP_T, ""] = self._text_cosines(encoder, features, texts)
        return {metric: result[metric] for metric in self.metrics()}

    def _text_cosines(self, clip: ImageEncoder, features: np.ndarray, texts: Sequence[str]) -> np.ndarray:
        different = list(dict.fromkeys(texts))
        of_texts = dict(zip(different, clip.text_features(different, self.backend), strict=True))
        text_features = np.stack([of_texts[text] for text in texts]).astype(np.float64)
        cosines: np.ndarray = (features.astype(np.float64) * text_features).sum(axis=1)
        return cosines

    def real_scores(self) -> dict[Metric, float]:
        """Return the scores of the real images themselves, an upper bound of what to expect.

        Training images are compared with each other, held-out ones with the training images.
        """
        scores = {}
        for (name, kind), features in self.real.items():
            training = self.real[name, TRAINING].astype(np.float64)
            cosines = features.astype(np.float64) @ training.T
            if kind == TRAINING:
                cosines = cosines[~np.eye(len(cosines), dtype=bool)]
            if cosines.size:
                scores[name, kind] = float(cosines.mean())
        return scores


def mean_cosines(features: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Return for each of features [N, C] of norm 1 the mean cosine with those of the real images [M, C], float64."""
    means: np.ndarray = (features.astype(np.float64) @ real.astype(np.float64).T).mean(axis=1)
    return means
