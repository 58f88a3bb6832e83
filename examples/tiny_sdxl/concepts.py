"""The two concepts that the tiny model is not trained on: an object and a style.

No single token describes either, and their colors lie between the named ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from examples.tiny_sdxl import rendering, world
from examples.tiny_sdxl.colors import COLORS, oklab
from examples.tiny_sdxl.world import Scene
from gm.runtime import rng


@dataclass(frozen=True)
class UnseenConcept:
    """A concept whose images share `colors` (sRGB by region), and `shape` if it is an object."""

    folder: str
    placeholder_token: str
    initializer_token: str
    learnable_property: str
    shape: str | None
    colors: dict[str, tuple[int, int, int]]

    @property
    def lab(self) -> dict[str, tuple[float, ...]]:
        """Return the colors as OKLab."""
        return {name: tuple(float(v) for v in oklab(rgb)) for name, rgb in self.colors.items()}

    def scenes(self, count: int, seed: int = 0) -> list[Scene]:
        """Return `count` scenes with the concept that differ in everything else."""
        return [self._scene(seed, k) for k in range(count)]

    def images(self, seed: int = 0, count: int = 5, side: int = 256) -> dict[str, Image.Image]:
        """Return training images by title."""
        arrays = [rendering.render(scene, side).round().astype(np.uint8) for scene in self.scenes(count, seed)]
        return {f"{self.folder}_{k}": Image.fromarray(pixels) for k, pixels in enumerate(arrays, 1)}

    def _scene(self, seed: int, number: int) -> Scene:
        generator = rng.generator(seed, f"pictures of {self.placeholder_token}", number)
        shared = self.lab
        backdrops = [name for name in COLORS if _stands_out(oklab(COLORS[name]), shared.values())]
        order = rng.permutation(len(backdrops), seed, f"backdrops of {self.placeholder_token}")
        backdrop = tuple(oklab(COLORS[backdrops[order[number % len(order)]]]))
        fills = [n for n in COLORS if _stands_out(oklab(COLORS[n]), [*shared.values(), backdrop])]
        radius = generator.uniform(0.24, 0.34)
        room = 0.47 - radius
        place = 0.5 + room * generator.uniform(-1, 1, 2)
        parts: dict[str, Any] = {
            "fill": tuple(oklab(COLORS[str(generator.choice(fills))])),
            "backdrop": backdrop,
        } | shared
        shape = self.shape or world.SHAPES[number % len(world.SHAPES)]
        return Scene(shape, radius, float(place[0]), float(place[1]), **parts)


def _stands_out(color: np.ndarray, others: Iterable[tuple[float, ...] | np.ndarray]) -> bool:
    return all(np.linalg.norm(color - np.asarray(other)) > 0.25 for other in others)


HUMBUG = UnseenConcept(
    folder="humbug",
    placeholder_token="<humbug>",
    initializer_token="heart",
    learnable_property="object",
    shape="heart",
    colors={"fill": (226, 130, 130), "stripes": (130, 10, 226)},
)
CONFETTI = UnseenConcept(
    folder="confetti",
    placeholder_token="<confetti>",
    initializer_token="paris",
    learnable_property="style",
    shape=None,
    colors={"outline": (195, 20, 95), "spots": (250, 180, 30)},
)
