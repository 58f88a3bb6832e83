"""Light and camera: the toy on a floor, by stepping along each ray as far as the nearest surface allows.

The stepping is sphere tracing (Hart, 1996); shadows are soft where a ray to the light passes close by.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from tools.drawings import toy

FINER = 2  # rays a pixel and direction
MIDDLE, REACH = np.array([0.15, 1.0, 0.0], np.float32), 1.35  # a ball around the toy, in its own coordinates

Colour = Callable[[np.ndarray, np.ndarray, int], np.ndarray]


@dataclass(frozen=True)
class Scene:
    """One photograph. Angles are in degrees, sizes (width, height) in pixels.

    The camera at `eye` looks at `target` with `view` from top to bottom, tilted by `roll`. The toy stands at `place`
    (x, z), turned by `turn`, leaning sideways by `lean` and forwards by `lie`. floor(x, z, seed) and wall(x, y, seed)
    give red green blue 0..1 [n, 3] of the plane y = 0 and of the plane z = `wall_at`; without that plane the wall is
    the sky, wall(azimuth, height, seed). `light` points to the lamp, `blur` pixels soften what lies behind.
    """

    name: str
    size: tuple[int, int]
    eye: tuple[float, float, float]
    target: tuple[float, float, float]
    view: float
    floor: Colour
    wall: Colour
    turn: float = 0.0
    lean: float = 0.0
    lie: float = 0.0
    roll: float = 0.0
    place: tuple[float, float] = (0.0, 0.0)
    wall_at: float | None = None
    light: tuple[float, float, float] = (0.5, 1.0, 0.6)
    sun: tuple[float, float, float] = (1.0, 0.95, 0.85)
    ambient: tuple[float, float, float] = (0.42, 0.45, 0.50)
    blur: float = 2.0
    seed: int = 0

    @property
    def rotation(self) -> np.ndarray:
        """Return the matrix [3, 3] from the toy's coordinates to the scene's directions."""
        return _about(1, self.turn) @ _about(2, self.lean) @ _about(0, self.lie)

    @property
    def position(self) -> np.ndarray:
        """Return where the toy's origin is, so that its lowest point touches the floor."""
        down = -self.rotation[1]
        return np.array([self.place[0], max(part.lowest(down) for part in toy.PARTS), self.place[1]])

    @property
    def axes(self) -> np.ndarray:
        """Return the camera's right, up and forward as rows [3, 3]."""
        forward = _unit(np.array(self.target) - np.array(self.eye))
        right = _unit(np.cross(forward, [0.0, 1.0, 0.0]))
        up = np.cross(right, forward)
        cos, sin = np.cos(np.radians(self.roll)), np.sin(np.radians(self.roll))
        return np.stack([cos * right + sin * up, cos * up - sin * right, forward])

    def project(self, points: np.ndarray) -> np.ndarray:
        """Return where `points` [n, 3] fall in the picture, (x, y) in pixels [n, 2]."""
        seen = (points - np.array(self.eye)) @ self.axes.T
        focal = self.size[1] / 2 / np.tan(np.radians(self.view) / 2)
        return np.array(self.size) / 2 + seen[:, :2] / seen[:, 2:] * [focal, -focal]


def render(scene: Scene) -> tuple[Image.Image, Image.Image]:
    """Return (the empty scene with the toy's shadow, RGB; the toy alone, RGBA), both of the scene's size."""
    start, rays = _rays(scene)
    behind = _background(scene, start, rays)
    travelled = _march(scene, start, rays)
    hit = np.isfinite(travelled)
    front = np.zeros((len(rays), 4), np.float32)
    front[hit, :3] = _lit_toy(scene, start + rays[hit] * travelled[hit, None], rays[hit])
    front[hit, 3] = 1
    return _soften(scene, _picture(behind, scene.size)), _picture(front, scene.size)


def shade(scene: Scene, points: np.ndarray) -> np.ndarray:
    """Return how much light reaches floor `points` [n, 3], as factors of red green blue [n, 3]."""
    light = np.array(_unit(np.array(scene.light)), np.float32)
    inward = np.array(scene.rotation, np.float32)
    own = (points - np.array(scene.position, np.float32)) @ inward
    contact = np.ones(len(points), np.float32)
    near = ((own - MIDDLE) ** 2).sum(-1) < (REACH + 0.6) ** 2
    gap = toy.distance(own[near] + np.array([0, 0.12, 0], np.float32) @ inward)
    contact[near] = 0.45 + 0.55 * np.clip(gap / 0.45, 0, 1)
    direct = _shadow(own, light @ inward) * light[1]
    return contact[:, None] * np.array(scene.ambient, np.float32) + direct[:, None] * np.array(scene.sun, np.float32)


def _about(axis: int, degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    matrix = np.eye(3)
    a, b = (axis + 1) % 3, (axis + 2) % 3
    matrix[a, a] = matrix[b, b] = c
    matrix[a, b], matrix[b, a] = -s, s
    return matrix


def _unit(v: np.ndarray) -> np.ndarray:
    return v / np.linalg.norm(v, axis=-1, keepdims=True)


def _rays(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    width, height = (side * FINER for side in scene.size)
    focal = height / 2 / np.tan(np.radians(scene.view) / 2)
    x, y = np.meshgrid(np.arange(width) + 0.5 - width / 2, height / 2 - 0.5 - np.arange(height))
    rays = np.stack([x / focal, y / focal, np.ones_like(x)], -1).reshape(-1, 3) @ scene.axes
    return np.array(scene.eye, np.float32), _unit(rays).astype(np.float32)


def _background(scene: Scene, start: np.ndarray, rays: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        to_floor = np.where(rays[:, 1] < 0, -start[1] / rays[:, 1], np.inf)
        to_wall = np.full(len(rays), np.inf)
        if scene.wall_at is not None:
            to_wall = np.where(rays[:, 2] < 0, (scene.wall_at - start[2]) / rays[:, 2], np.inf)
    colour = np.zeros_like(rays)
    floor = to_floor < np.minimum(to_wall, 80)
    points = start + rays[floor] * to_floor[floor, None].astype(np.float32)
    colour[floor] = scene.floor(points[:, 0], points[:, 2], scene.seed) ** 2.2 * shade(scene, points)
    rest = ~floor
    if scene.wall_at is None:
        azimuth = np.arctan2(rays[rest, 0], -rays[rest, 2])
        colour[rest] = scene.wall(azimuth, rays[rest, 1], scene.seed) ** 2.2
    else:
        points = start + rays[rest] * np.minimum(to_wall[rest, None], 1e3).astype(np.float32)
        light = np.array(scene.ambient, np.float32) + 0.5 * np.array(scene.sun, np.float32)
        colour[rest] = scene.wall(points[:, 0], points[:, 1], scene.seed) ** 2.2 * light
    return colour


def _march(scene: Scene, start: np.ndarray, rays: np.ndarray) -> np.ndarray:
    """Return how far along each ray the toy is, infinity where it is missed."""
    inward = np.array(scene.rotation, np.float32)
    origin = (start - np.array(scene.position, np.float32)) @ inward
    return _trace(np.broadcast_to(origin, rays.shape), rays @ inward)


def _trace(origins: np.ndarray, rays: np.ndarray) -> np.ndarray:
    near, far = _through_ball(origins, rays)
    travelled = np.where(far > 0, np.maximum(near, 0), np.inf).astype(np.float32)
    active = np.flatnonzero(np.isfinite(travelled))
    for _ in range(90):
        gap = toy.distance(origins[active] + rays[active] * travelled[active, None])
        travelled[active] += gap * np.float32(0.85)
        travelled[active[travelled[active] > far[active]]] = np.inf
        active = active[(gap > 0.0008) & np.isfinite(travelled[active])]
        if not len(active):
            break
    return travelled


def _through_ball(origins: np.ndarray, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where rays enter and leave the ball around the toy; leaving is -1 where they miss it."""
    q = MIDDLE - origins
    along = (q * rays).sum(-1)
    room = REACH**2 - ((q * q).sum(-1) - along**2)
    half = np.sqrt(np.maximum(room, 0))
    return along - half, np.where(room > 0, along + half, -1)


def _shadow(points: np.ndarray, light: np.ndarray) -> np.ndarray:
    """Return 0 (in shadow) to 1 (lit) for `points` and the direction `light`, both in the toy's coordinates."""
    rays = np.broadcast_to(light.astype(np.float32), points.shape)
    near, far = _through_ball(points, rays)
    travelled = np.maximum(near, 0.03).astype(np.float32)
    lit = np.ones(len(points), np.float32)
    active = np.flatnonzero(far > 0.03)
    for _ in range(50):
        gap = toy.distance(points[active] + rays[active] * travelled[active, None])
        lit[active] = np.minimum(lit[active], np.clip(9 * gap / travelled[active], 0, 1))
        travelled[active] += np.clip(gap * 0.85, 0.012, 0.2)
        active = active[(travelled[active] < far[active]) & (lit[active] > 0.004)]
        if not len(active):
            break
    return lit * lit * (3 - 2 * lit)


def _lit_toy(scene: Scene, points: np.ndarray, rays: np.ndarray) -> np.ndarray:
    inward = np.array(scene.rotation, np.float32)
    own = (points - np.array(scene.position, np.float32)) @ inward
    colour, shiny = toy.colours(own)
    soft = (1 - shiny)[:, None]
    normal = _normals(own) + soft * _felt(own)
    normal = _unit(normal) @ inward.T
    light = np.array(_unit(np.array(scene.light)), np.float32)
    direct = np.clip((normal @ light + 0.12) / 1.12, 0, 1) * _shadow(own + 0.02 * (normal @ inward), light @ inward)
    around = (0.62 + 0.38 * normal[:, 1])[:, None] * np.array(scene.ambient, np.float32)
    lit = colour**2.2 * (direct[:, None] * np.array(scene.sun, np.float32) + around)
    edge = np.clip(1 + (normal * rays).sum(-1), 0, 1)[:, None]
    lit += soft * edge**3 * 0.16 * np.array(scene.ambient, np.float32)  # the fuzz of felt catches light at the outline
    halfway = _unit(light - rays)
    glow = np.clip((normal * halfway).sum(-1), 0, 1) ** 40 * shiny * direct
    return lit + 0.6 * glow[:, None]


def _normals(p: np.ndarray) -> np.ndarray:
    steps = np.array([[1, -1, -1], [-1, -1, 1], [-1, 1, -1], [1, 1, 1]], np.float32)
    return _unit(sum(k * toy.distance(p + k * np.float32(0.004))[:, None] for k in steps))


def _felt(p: np.ndarray) -> np.ndarray:
    """Return small bumps for the normals: threads that cross."""
    a, b = p @ np.array([71, 53, 37], np.float32), p @ np.array([-47, 67, -59], np.float32)
    return 0.09 * np.stack([np.sin(a + 2 * np.sin(b * 0.31)), np.sin(b + 1.3), np.sin(a * 0.7 - b)], -1)


def _picture(colour: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """Return light as a picture, averaged over the rays of a pixel."""
    width, height = size
    grid = colour.reshape(height, FINER, width, FINER, -1)
    light = grid.mean((1, 3))
    if light.shape[-1] == 4:
        light[..., :3] /= np.maximum(light[..., 3:], 1e-6)
    rgb = np.clip(light[..., :3], 0, 1) ** (1 / 2.2)
    whole = np.concatenate([rgb, light[..., 3:]], -1)
    return Image.fromarray((whole * 255 + 0.5).astype(np.uint8))


def _soften(scene: Scene, image: Image.Image) -> Image.Image:
    """Return `image` with what lies far behind the toy out of focus."""
    row = scene.project(np.array([[scene.place[0], 0, scene.place[1] - 0.5]]))[0, 1]
    fade = np.clip((row - np.arange(image.height)) / (0.16 * image.height), 0, 1)
    mask = Image.fromarray(np.tile((fade * 255).astype(np.uint8)[:, None], (1, image.width)))
    return Image.composite(image.filter(ImageFilter.GaussianBlur(scene.blur)), image, mask)
