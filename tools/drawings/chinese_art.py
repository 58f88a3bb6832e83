"""Six ink paintings in one manner: what is on each sheet, from far to near."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from PIL import Image

from tools.drawings.ink import Sheet
from tools.drawings.motifs import birds, boat, cliff, leaf, mist, mountain_range, needles, trunk, water
from tools.drawings.noise import fractal

SEAL = ("##### #", "#   # #", "# ### #", "# #   #", "# ### #", "#      ", "#######")


def pictures(seed: int) -> dict[str, Image.Image]:
    """Return the pictures by name."""
    drawn = {}
    for number, (name, size, paint) in enumerate(SHEETS):
        sheet = Sheet(size, 1000 * seed + 17 * number)
        paint(sheet)
        drawn[name] = sheet.picture()
    return drawn


def _mountains(sheet: Sheet) -> None:
    mountain_range(sheet, 0.62, 0.50, 0.30, 2.2, 10)
    mist(sheet, 0.56, 0.07, 20)
    mountain_range(sheet, 0.80, 0.52, 0.75, 1.7, 30)
    mist(sheet, 0.74, 0.08, 40)
    sheet.blot((0.98, 0.20), (0.062, 0.062), 0.0, red=0.78, even=0.8)
    for x, y, size in ((0.06, 0.86, 0.06), (0.15, 0.83, 0.05), (0.22, 0.88, 0.045), (0.01, 0.90, 0.05)):
        sheet.stroke([(x, y), (x + 0.004, y - size), (x - 0.004, y - 1.7 * size)], 0.012, 1.1, "end")
        for k in range(9):
            spot = (x + size * (sheet.random.random() - 0.5), y - size * (0.8 + 1.1 * sheet.random.random()))
            sheet.blot(spot, (0.28 * size, 0.14 * size), 0.7 + 0.05 * k)
    bank = np.clip((sheet.y - 0.90 - 0.03 * fractal(sheet.x * 5, 0.1, sheet.seed)) / 0.01, 0, 1)
    sheet.wash(bank * np.clip((0.55 - sheet.x) * 3, 0, 1) * np.exp(-(sheet.y - 0.9) / 0.05) * 0.9)
    water(sheet, 0.84, 0.99, 16)
    boat(sheet, (0.82, 0.90), 0.075)
    birds(sheet, (0.62, 0.13), 4, 0.018)
    sheet.seal((1.03, 0.72), 0.085, SEAL)


def _bamboo(sheet: Sheet) -> None:
    stalks = ((0.64, 0.45, 0.040, 0.32), (0.20, 0.30, 0.058, 0.75), (0.42, 0.52, 0.044, 0.95))
    for foot, head, width, dark in stalks:
        joints = np.linspace(sheet.bottom + 0.05, -0.05, 7)
        for low, high in pairwise(joints):
            ends = [
                (foot + (head - foot) * (1 - y / sheet.bottom) ** 1.2 if y < sheet.bottom else foot, y)
                for y in (low, high)
            ]
            (x0, y0), (x1, y1) = ends
            sheet.stroke(
                [(x0, y0 - 0.012), ((x0 + x1) / 2 + 0.003, (y0 + y1) / 2), (x1, y1 + 0.012)], width, dark, "none", 0.55
            )
            sheet.stroke(
                [(x1 - 0.6 * width, y1 + 0.004), (x1, y1 - 0.003), (x1 + 0.6 * width, y1 + 0.006)], 0.011, dark * 1.5
            )
    sprays = (
        (0.30, 0.30, 0.5),
        (0.55, 0.42, 1.3),
        (0.24, 0.62, 1.2),
        (0.60, 0.75, 0.6),
        (0.48, 0.16, 1.4),
        (0.72, 0.28, 0.45),
        (0.30, 0.92, 1.1),
    )
    for x, y, dark in sprays:
        side = 1 if x > 0.4 else -1
        tip = (x + side * 0.13, y - 0.01)
        sheet.stroke([(x - side * 0.06, y - 0.05), (x, y - 0.04), tip], 0.009, dark)
        for k in range(6):
            stem = (x + side * (0.02 * k), y - 0.04 + 0.006 * k)
            angle = np.pi / 2 - side * (1.15 - 0.34 * k) + 0.1 * (sheet.random.random() - 0.5)
            leaf(sheet, stem, angle, 0.15 + 0.07 * sheet.random.random(), dark)
    sheet.seal((0.84, 1.00), 0.095, SEAL)


def _lake(sheet: Sheet) -> None:
    mountain_range(sheet, 0.42, 0.22, 0.28, 2.6, 10, 0.15)
    mountain_range(sheet, 0.47, 0.16, 0.42, 1.9, 30, 0.2)
    mist(sheet, 0.45, 0.035, 40)
    sheet.blot((0.24, 0.15), (0.07, 0.07), 0.0, red=0.78, even=0.8)
    water(sheet, 0.52, 0.98, 26)
    boat(sheet, (0.56, 0.66), 0.14)
    for _ in range(34):
        x, tall = 0.02 + 0.30 * sheet.random.random() ** 1.3, 0.22 + 0.28 * sheet.random.random()
        lean = 0.10 * (sheet.random.random() - 0.3)
        points = [(x, 1.02), (x + 0.3 * lean, 1.02 - 0.55 * tall), (x + lean, 1.02 - tall)]
        sheet.stroke(points, 0.010, 0.5 + 0.8 * sheet.random.random(), "end")
        if sheet.random.random() < 0.45:
            sheet.blot((points[2][0], points[2][1] - 0.02), (0.010, 0.032), 0.8, 0.25)
    birds(sheet, (0.62, 0.20), 5, 0.020)
    sheet.seal((0.85, 0.83), 0.09, SEAL)


def _waterfall(sheet: Sheet) -> None:
    mountain_range(sheet, 0.66, 0.50, 0.26, 2.4, 10)
    mist(sheet, 0.60, 0.10, 20)
    lip = cliff(sheet, 0.36, 0.40, -1, 30)
    cliff(sheet, 0.62, 0.30, 1, 60)
    for k in range(15):
        x = 0.37 + 0.016 * k + 0.008 * sheet.random.random()
        start, end = lip + 0.05 * sheet.random.random(), 0.75 + 0.4 * sheet.random.random()
        bow = 0.012 * (sheet.random.random() - 0.5)
        sheet.stroke(
            [(x - 0.02, start), (x, start + 0.03), (x + bow, 0.7), (x + 2 * bow, end)], 0.007, 0.42, "end", 0.7
        )
    mist(sheet, 1.16, 0.12, 80)
    water(sheet, 1.20, 1.31, 12)
    trunk(sheet, [(0.98, 0.66), (0.82, 0.62), (0.72, 0.52), (0.60, 0.50), (0.50, 0.43)], 0.050, 1.3)
    trunk(sheet, [(0.74, 0.54), (0.70, 0.44), (0.74, 0.36)], 0.026, 1.3)
    for at in ((0.50, 0.43), (0.60, 0.47), (0.74, 0.36), (0.66, 0.41), (0.83, 0.55), (0.56, 0.54)):
        needles(sheet, at, 0.085)
    birds(sheet, (0.14, 0.16), 3, 0.022)
    sheet.seal((0.07, 0.25), 0.095, SEAL)


def _plum(sheet: Sheet) -> None:
    trunk(sheet, [(-0.03, 0.98), (0.14, 0.80), (0.22, 0.62), (0.40, 0.50), (0.56, 0.44), (0.80, 0.24)], 0.085, 1.2)
    trunk(sheet, [(0.24, 0.62), (0.22, 0.44), (0.32, 0.26), (0.33, 0.10)], 0.036, 1.3)
    trunk(sheet, [(0.52, 0.46), (0.70, 0.50), (0.84, 0.46), (0.97, 0.50)], 0.030, 1.3)
    trunk(sheet, [(0.64, 0.38), (0.62, 0.22), (0.68, 0.10)], 0.020, 1.3)
    places = (
        (0.33, 0.13),
        (0.29, 0.31),
        (0.22, 0.47),
        (0.44, 0.44),
        (0.60, 0.36),
        (0.66, 0.16),
        (0.76, 0.28),
        (0.84, 0.44),
        (0.72, 0.53),
        (0.94, 0.53),
        (0.36, 0.58),
        (0.57, 0.21),
    )
    for x, y in places:
        size = 0.026 + 0.010 * sheet.random.random()
        turn = 6.3 * sheet.random.random()
        for k in range(5):
            a = turn + k * 2 * np.pi / 5
            sheet.blot((x + size * np.cos(a), y + size * np.sin(a)), (0.72 * size, 0.62 * size), 0.0, a, red=0.62)
        for k in range(7):
            a = turn + k * 0.9
            tip = (x + 0.8 * size * np.cos(a), y + 0.8 * size * np.sin(a))
            sheet.stroke([(x, y), tip], 0.004, 1.0, "none")
            sheet.blot(tip, (0.0045, 0.0045), 1.3)
    for _ in range(16):
        x, y = places[int(sheet.random.integers(len(places)))]
        at = (x + 0.11 * (sheet.random.random() - 0.5), y + 0.11 * (sheet.random.random() - 0.5))
        sheet.blot(at, (0.011, 0.009), 0.15, 3 * sheet.random.random(), red=0.75)
    sheet.seal((0.80, 0.80), 0.095, SEAL)


def _village(sheet: Sheet) -> None:
    mountain_range(sheet, 0.58, 0.48, 0.30, 1.5, 10)
    mist(sheet, 0.50, 0.06, 20)
    mountain_range(sheet, 0.70, 0.30, 0.60, 2.1, 30)
    mist(sheet, 0.67, 0.06, 40)
    for x, y, size in ((0.34, 0.76, 0.10), (0.48, 0.80, 0.13), (0.22, 0.81, 0.09)):
        sheet.stroke([(x - size, y), (x - 0.6 * size, y - 0.16 * size), (x, y - 0.62 * size)], 0.14 * size, 1.4)
        sheet.stroke([(x, y - 0.62 * size), (x + 0.6 * size, y - 0.16 * size), (x + size, y)], 0.14 * size, 1.4)
        sheet.stroke(
            [(x - 0.5 * size, y - 0.12 * size), (x + 0.5 * size, y - 0.12 * size)], 0.40 * size, 0.45, "none", 0.7
        )
        for side in (-0.66, 0.66):
            sheet.stroke([(x + side * size, y), (x + side * size, y + 0.55 * size)], 0.06 * size, 1.1, "none")
        sheet.stroke([(x - 0.7 * size, y + 0.56 * size), (x + 0.7 * size, y + 0.56 * size)], 0.05 * size, 0.9)
    sheet.stroke([(0.62, 0.90), (0.76, 0.83), (0.92, 0.82), (1.06, 0.88)], 0.022, 1.1)
    for x in (0.70, 0.80, 0.90, 1.0):
        sheet.stroke([(x, 0.85), (x, 0.94)], 0.008, 0.9, "none")
    water(sheet, 0.90, 0.99, 22)
    trunk(sheet, [(1.13, 1.02), (1.12, 0.80), (1.17, 0.62), (1.10, 0.46), (1.14, 0.36)], 0.045, 1.3)
    for _ in range(24):
        x, y = 1.12 + 0.16 * (sheet.random.random() - 0.5), 0.36 + 0.12 * (sheet.random.random() - 0.5)
        fall = 0.14 + 0.22 * sheet.random.random()
        side = (x - 1.12) * 1.3
        sheet.stroke([(x, y), (x + side, y + 0.3 * fall), (x + 1.5 * side, y + fall)], 0.007, 0.75, "end")
        for k in range(7):
            t = (k + 1) / 8
            spot = (x + side * min(1.5 * t + 0.3, 1.5), y + fall * t)
            leaf(sheet, spot, np.pi / 2 + 0.7 * (sheet.random.random() - 0.5), 0.030, 0.9)
    birds(sheet, (0.30, 0.12), 4, 0.018)
    sheet.seal((0.16, 0.07), 0.085, SEAL)


SHEETS = (
    ("mountains", (512, 400), _mountains),
    ("bamboo", (384, 480), _bamboo),
    ("lake", (448, 448), _lake),
    ("waterfall", (384, 512), _waterfall),
    ("plum", (448, 448), _plum),
    ("village", (512, 416), _village),
)
