"""The two things in the world that the tiny model never saw, for it to learn: an object and a style.

Neither can be said in one word, and their colours lie between those that have names.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from examples.tiny_sdxl import drawing, world
from examples.tiny_sdxl.colours import COLOURS, oklab
from examples.tiny_sdxl.world import Scene
from gm.runtime import rng


@dataclass(frozen=True)
class Unseen:
    """`colours` (sRGB by region) is what all its images share, on `shape` if it is an object."""

    folder: str
    word: str
    initializer: str
    kind: str  # as in --learnable_property
    shape: str | None
    colours: dict[str, tuple[int, int, int]]

    @property
    def lab(self) -> dict[str, tuple[float, ...]]:
        """Return the colours as OKLab."""
        return {name: tuple(float(v) for v in oklab(rgb)) for name, rgb in self.colours.items()}

    def scenes(self, count: int, seed: int = 0) -> list[Scene]:
        """Return `count` scenes with it, everything else about them being different."""
        return [self._scene(seed, k) for k in range(count)]

    def images(self, seed: int = 0, count: int = 5, side: int = 256) -> dict[str, Image.Image]:
        """Return images to learn it from, by title."""
        drawn = [drawing.image(scene, side).round().astype(np.uint8) for scene in self.scenes(count, seed)]
        return {f"{self.folder}_{k}": Image.fromarray(pixels) for k, pixels in enumerate(drawn, 1)}

    def _scene(self, seed: int, number: int) -> Scene:
        generator, own = rng.generator(seed, f"pictures of {self.word}", number), self.lab
        backdrops = [name for name in COLOURS if _stands_out(oklab(COLOURS[name]), own.values())]
        order = rng.permutation(len(backdrops), seed, f"backdrops of {self.word}")
        backdrop = tuple(oklab(COLOURS[backdrops[order[number % len(order)]]]))
        fills = [n for n in COLOURS if _stands_out(oklab(COLOURS[n]), [*own.values(), backdrop])]
        radius = generator.uniform(0.24, 0.34)
        room = 0.47 - radius
        place = 0.5 + room * generator.uniform(-1, 1, 2)
        parts: dict[str, Any] = {
            "fill": tuple(oklab(COLOURS[str(generator.choice(fills))])),
            "backdrop": backdrop,
        } | own
        shape = self.shape or world.SHAPES[number % len(world.SHAPES)]
        return Scene(shape, radius, float(place[0]), float(place[1]), **parts)


def _stands_out(colour: np.ndarray, others: Iterable[tuple[float, ...] | np.ndarray]) -> bool:
    return all(np.linalg.norm(colour - np.asarray(other)) > 0.25 for other in others)


HUMBUG = Unseen("humbug", "<humbug>", "heart", "object", "heart", {"fill": (226, 130, 130), "stripes": (130, 10, 226)})
CONFETTI = Unseen("confetti", "<confetti>", "paris", "style", None, {"outline": (195, 20, 95), "spots": (250, 180, 30)})
