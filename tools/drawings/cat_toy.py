"""Six photographs of the cat toy: its places, and the camera in each."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from PIL import Image, ImageDraw

from gm import draws
from tools.drawings import textures
from tools.drawings.rendering import Scene, render, shade

SCENES = [
    Scene(
        name="table",
        size=(512, 416),
        eye=(0.3, 2.1, 5.6),
        target=(0.1, 1.0, 0),
        view=31,
        floor=textures.table,
        wall=textures.plaster,
        turn=12,
        wall_at=-2.6,
        sun=(0.95, 0.80, 0.60),
    ),
    Scene(
        name="lawn",
        size=(400, 512),
        eye=(-0.4, 1.25, 5.8),
        target=(0, 1.1, 0),
        view=31,
        floor=textures.turf,
        wall=textures.garden,
        turn=-28,
        roll=-3,
        light=(-0.7, 1, 0.4),
        blur=3,
    ),
    Scene(
        name="shelf",
        size=(448, 448),
        eye=(0.2, 1.6, 5.2),
        target=(0.25, 1.15, 0),
        view=37,
        floor=textures.board,
        wall=textures.books,
        turn=-42,
        place=(0.75, 0),
        wall_at=-1.0,
        light=(-0.5, 0.9, 0.9),
        sun=(0.8, 0.75, 0.7),
        blur=1.2,
    ),
    Scene(
        name="carpet",
        size=(512, 400),
        eye=(0.2, 5.6, 3.0),
        target=(0.0, 0, -0.15),
        view=29,
        floor=textures.carpet,
        wall=textures.plaster,
        turn=32,
        lean=5,
        lie=-84,
        place=(0.75, 0.75),
        wall_at=-9.0,
        light=(0.8, 1.0, 0.1),
        ambient=(0.50, 0.55, 0.62),
        blur=0.5,
    ),
    Scene(
        name="beach",
        size=(512, 360),
        eye=(0.5, 1.5, 8.0),
        target=(0.6, 1.25, 0),
        view=26,
        floor=textures.sand,
        wall=textures.evening,
        turn=38,
        place=(-0.1, 0),
        roll=2,
        light=(0.9, 0.55, 0.35),
        sun=(1.15, 0.85, 0.60),
        blur=1.6,
    ),
    Scene(
        name="kitchen",
        size=(384, 480),
        eye=(0.5, 2.0, 4.1),
        target=(0.1, 1.08, 0),
        view=41,
        floor=textures.cloth,
        wall=textures.kitchen,
        turn=24,
        roll=9,
        wall_at=-2.2,
        light=(0.2, 1.0, 0.9),
        ambient=(0.5, 0.5, 0.5),
        sun=(0.75, 0.75, 0.72),
        blur=2.5,
    ),
]


def pictures(seed: int) -> dict[str, Image.Image]:
    """Return the pictures by name."""
    drawn = {}
    for scene in (replace(scene, seed=seed) for scene in SCENES):
        behind, toy = render(scene)
        canvas = behind.convert("RGBA")
        if scene.name == "lawn":
            _grass(canvas, scene, nearer=False)
        canvas.alpha_composite(toy)
        if scene.name == "lawn":
            _grass(canvas, scene, nearer=True)
        drawn[scene.name] = canvas.convert("RGB")
    return drawn


def _grass(canvas: Image.Image, scene: Scene, nearer: bool) -> None:
    """Draw blades of grass behind the toy, or in front of it."""
    finer = 4
    layer = Image.new("RGBA", (canvas.width * finer, canvas.height * finer))
    pen = ImageDraw.Draw(layer)
    random = draws.generator(scene.seed, "grass", int(nearer))
    count = 900 if nearer else 6000
    depth = (0.45 + 1.4 * random.random(count)) if nearer else 0.45 - 7 * random.random(count)
    across = (random.random(count) - 0.5) * 2 * (2.1 + 0.32 * (1.5 - depth))
    roots = np.stack([across, np.zeros(count), depth], -1)
    tall = 0.10 + 0.16 * random.random(count)
    bend = (random.random((count, 2)) - 0.5) * 0.16
    tips = roots + np.stack([bend[:, 0], tall, bend[:, 1]], -1)
    waist = (roots + tips) / 2 - np.stack([bend[:, 0] * 0.3, -0.02 * tall, bend[:, 1] * 0], -1)
    light = shade(scene, roots.astype(np.float32)).mean(-1) ** (1 / 2.2)
    hue = random.random(count)
    for k in np.argsort(depth):
        root, middle, tip = scene.project(np.stack([roots[k], waist[k], tips[k]])) * finer
        half = max(0.011 * (np.linalg.norm(tip - root) / tall[k]), 1.2)
        green = np.array([0.30 + 0.24 * hue[k], 0.50 + 0.16 * hue[k], 0.16]) * light[k] * 0.95
        colour = tuple(int(c) for c in np.clip(green, 0, 1) * 255)
        side = np.array([half, 0])
        outline = [root - side, middle - 0.7 * side, tip, middle + 0.7 * side, root + side]
        pen.polygon([(round(float(x)), round(float(y))) for x, y in outline], fill=colour)
    canvas.alpha_composite(layer.resize(canvas.size, Image.Resampling.BOX))
