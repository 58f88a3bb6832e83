"""Named colors, and OKLab, a perceptually uniform color space (Ottosson, 2020)."""

from __future__ import annotations

import numpy as np

COLORS: dict[str, tuple[int, int, int]] = {  # sRGB
    "red": (222, 28, 36),
    "orange": (246, 134, 22),
    "yellow": (250, 222, 50),
    "green": (34, 142, 58),
    "cyan": (96, 206, 240),
    "blue": (36, 84, 222),
    "navy": (20, 26, 92),
    "purple": (122, 44, 168),
    "pink": (250, 146, 190),
    "brown": (122, 72, 34),
    "beige": (238, 214, 170),
    "white": (250, 250, 250),
    "grey": (132, 132, 132),
    "black": (16, 16, 16),
}


def oklab(rgb: np.ndarray | tuple[int, ...]) -> np.ndarray:
    """Return OKLab coordinates of sRGB values 0 … 255, [..., 3]."""
    values = np.asarray(rgb, np.float64) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return np.cbrt(linear @ _LINEAR_TO_LMS.T) @ _LMS_TO_LAB.T


def srgb(lab: np.ndarray | tuple[float, ...]) -> np.ndarray:
    """Return sRGB values 0 … 255 of OKLab coordinates [..., 3], clipped to the sRGB gamut."""
    linear = (np.asarray(lab) @ np.linalg.inv(_LMS_TO_LAB).T) ** 3 @ np.linalg.inv(_LINEAR_TO_LMS).T
    linear = np.clip(linear, 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


_LINEAR_TO_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_LMS_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
CENTERS = np.array([oklab(rgb) for rgb in COLORS.values()])


def nearest_name(lab: np.ndarray | tuple[float, ...]) -> str:
    """Return the name of COLORS that is nearest in OKLab."""
    return list(COLORS)[int(np.argmin(((CENTERS - np.asarray(lab)) ** 2).sum(-1)))]
