"""What the ink paintings are made of: mountains and mist, water and boats, trees and leaves."""

from __future__ import annotations

import numpy as np

from tools.drawings.ink import Point, Sheet
from tools.drawings.noise import fractal, smooth


def mountain_range(
    sheet: Sheet, base: float, height: float, dark: float, peaks: float, seed: int, rough: float = 0.25
) -> None:
    """Wash in a range of mountains: dark along its ridge, lost in mist at `base`; texture strokes run down from it."""
    x = sheet.x[0]
    crest = (1 - np.abs(2 * smooth(x * peaks, 0.3, sheet.seed + seed) - 1)) ** 1.3
    fine = fractal(x * peaks * 5, 0.7, sheet.seed + seed + 1)
    ridge = base - height * ((1 - rough) * crest + rough * fine)
    depth = sheet.y - ridge[None, :]
    inside = np.clip(depth * sheet.unit, 0, 1)
    fall = np.clip(1 - depth / np.maximum(base - ridge[None, :], 0.05), 0, 1) ** 1.4
    folds = fractal(sheet.x * 14 + 4 * depth, depth * 5, sheet.seed + seed + 2)
    sheet.wash(inside * fall * dark * (0.45 + 0.9 * folds))
    sheet.wash(inside * np.exp(-depth / 0.012) * dark * 0.6)


def mist(sheet: Sheet, y: float, thick: float, seed: int) -> None:
    """Lift the ink in a drifting band around height `y`."""
    drift = 0.08 * (fractal(sheet.x * 2.5, 0.2, sheet.seed + seed) - 0.5)
    band = np.exp(-(((sheet.y - y - drift) / thick) ** 2))
    sheet.lift(band * (0.55 + 0.5 * fractal(sheet.x * 3, sheet.y * 8, sheet.seed + seed + 1)))


def water(sheet: Sheet, top: float, bottom: float, count: int) -> None:
    for _ in range(count):
        y = top + (bottom - top) * sheet.random.random() ** 0.8
        x = sheet.right * sheet.random.random()
        length = 0.05 + 0.16 * sheet.random.random()
        sheet.stroke([(x, y), (x + length / 2, y + 0.004), (x + length, y)], 0.005, 0.16 + 0.2 * sheet.random.random())


def boat(sheet: Sheet, at: Point, size: float) -> None:
    """Draw a small boat with a round mat roof and a man at the oar."""

    def p(x: float, y: float) -> Point:
        return at[0] + size * x, at[1] + size * y

    sheet.stroke([p(-1, -0.16), p(-0.5, 0.05), p(0.3, 0.07), p(1.05, -0.20)], 0.17 * size, 1.5)
    sheet.stroke([p(-0.95, -0.14), p(0, -0.03), p(1.0, -0.18)], 0.04 * size, 1.2)
    sheet.stroke([p(-0.35, -0.05), p(-0.28, -0.34), p(0.1, -0.40), p(0.38, -0.30), p(0.42, -0.06)], 0.09 * size, 1.3)
    sheet.stroke([p(-0.1, -0.12), p(0.1, -0.30), p(0.3, -0.12)], 0.22 * size, 0.45)
    sheet.stroke([p(0.72, -0.12), p(0.74, -0.35), p(0.70, -0.52)], 0.16 * size, 1.2)
    sheet.blot(p(0.70, -0.62), (0.07 * size, 0.07 * size), 1.0)
    sheet.stroke([p(0.52, -0.64), p(0.70, -0.76), p(0.88, -0.63)], 0.08 * size, 1.4)
    sheet.stroke([p(0.70, -0.40), p(1.0, -0.1), p(1.3, 0.25)], 0.035 * size, 1.2)
    for k in range(4):
        sheet.stroke(
            [p(-0.9 + 0.1 * k, 0.16 + 0.07 * k), p(0.9 - 0.2 * k, 0.17 + 0.07 * k)], 0.04 * size, 0.35 - 0.06 * k
        )


def birds(sheet: Sheet, at: Point, count: int, size: float) -> None:
    for k in range(count):
        x, y = at[0] + k * size * 2.2 + size * sheet.random.random(), at[1] + size * 1.4 * np.sin(k * 1.3)
        wing = size * (0.8 + 0.3 * sheet.random.random())
        sheet.stroke([(x - wing, y - 0.45 * wing), (x - 0.4 * wing, y - 0.5 * wing), (x, y)], 0.22 * wing, 1.0)
        sheet.stroke([(x, y), (x + 0.5 * wing, y - 0.6 * wing), (x + wing, y - 0.35 * wing)], 0.22 * wing, 1.0)


def trunk(sheet: Sheet, points: list[Point], width: float, dark: float) -> None:
    """Draw a knotty branch: a dry dark stroke, its shadow side and some knots."""
    sheet.stroke(points, width, dark * 0.6, "end")
    sheet.stroke([(x + width * 0.14, y + width * 0.1) for x, y in points], width * 0.7, dark * 0.8, "end", dry=0.9)
    for k in range(1, len(points)):
        (x0, y0), (x1, y1) = points[k - 1], points[k]
        t = sheet.random.random()
        sheet.blot((x0 + t * (x1 - x0), y0 + t * (y1 - y0)), (width * 0.22, width * 0.14), dark * 0.9)


def needles(sheet: Sheet, at: Point, size: float) -> None:
    """Draw a fan of pine needles over a grey cloud."""
    sheet.blot((at[0], at[1] - 0.25 * size), (1.0 * size, 0.45 * size), 0.30)
    for k in range(26):
        angle = np.pi * (1.0 + (k + 0.5 + sheet.random.random() - 0.5) / 26)
        length = size * (0.7 + 0.35 * sheet.random.random())
        foot = (at[0] + size * 0.45 * np.cos(angle), at[1] + 0.06 * size * sheet.random.random())
        tip = (foot[0] + 0.75 * length * np.cos(angle), foot[1] + 0.62 * length * np.sin(angle))
        sheet.stroke([foot, tip], 0.0065, 1.3)


def leaf(sheet: Sheet, at: Point, angle: float, length: float, dark: float) -> None:
    """Draw one bamboo leaf: pressed down, then lifted to a point."""
    bend = 0.25 * (sheet.random.random() - 0.5)
    steps = [(t, angle + bend * t) for t in (0.0, 0.35, 0.7, 1.0)]
    points = [(at[0] + length * t * np.cos(a), at[1] + length * t * np.sin(a)) for t, a in steps]
    sheet.stroke(points, 0.17 * length, dark, dry=0.25)


def cliff(sheet: Sheet, edge: float, top: float, side: int, seed: int) -> float:
    """Paint a rock wall whose right (`side` -1) or left (1) edge is near x = `edge`; return the height of its brink."""
    wander = edge + 0.16 * (fractal(sheet.y * 2.2, 0.5, sheet.seed + seed) - 0.5)
    inward = (sheet.x - wander) * side
    brink = top - 0.20 * np.clip(inward, 0, 0.5) + 0.16 * (fractal(sheet.x * 5, 0.4, sheet.seed + seed + 1) - 0.5)
    inside = np.clip(inward * 120, 0, 1) * np.clip((sheet.y - brink) * 120, 0, 1)
    rim = np.exp(-np.abs(inward) / 0.035) + 0.8 * np.exp(-np.abs(sheet.y - brink) / 0.05)
    sheet.wash(inside * (0.20 + 0.75 * rim))
    for _ in range(110):  # dry strokes with the side of the brush make the grain of the rock
        x, y = edge + side * (0.02 + 0.45 * sheet.random.random()), top + 0.85 * sheet.random.random() ** 1.2
        row, column = min(int(y * sheet.unit), sheet.size[1] - 1), min(max(int(x * sheet.unit), 0), sheet.size[0] - 1)
        if inside[row, column] < 1:
            continue
        length, slope = 0.08 + 0.16 * sheet.random.random(), side * 0.22 * sheet.random.random()
        points = [(x, y), (x + 0.6 * slope * length, y + 0.5 * length), (x + slope * length, y + length)]
        sheet.stroke(points, 0.010 + 0.016 * sheet.random.random(), 0.25 + 0.45 * sheet.random.random(), "both", 0.95)
    return top
