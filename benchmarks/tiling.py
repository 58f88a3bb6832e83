"""What decoding in tiles costs, spares and shows, against decoding whole.

    python benchmarks/tiling.py --size tiny

The autoencoder alone is loaded, and decodes one image a piece. With the shipped model's weights, the size tiny, the
images of both ways are compared, too: by levels of 0 to 255, and across the lines where a tile begins or ends against
across all others.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks import report, tiled
from benchmarks.alternation import alternate, pairwise, worker
from benchmarks.models import SIZES
from gm.config import cli
from gm.errors import UserError

_TIMES = 4  # of the pixels a side that the model is measured at


def main() -> None:
    parser = report.parser("Decode whole and in tiles: seconds, memory, and what the seams look like.")
    parser.add_argument("--resolution", type=int, help="pixels a side (default: four times the size's)")
    parser.add_argument("--tile", type=int, help="pixels a side of a tile (default: half the resolution)")
    report.add_turns(parser)
    flags = parser.read()
    size = SIZES[flags["size"]]
    pixels = flags["resolution"] or _TIMES * size.pixels
    tile = flags["tile"] or pixels // 2
    reduction = size.config().model.vae.reduction
    if pixels % reduction or tile % reduction or not 0 < tile < pixels:
        raise UserError(f"--resolution {pixels} and --tile {tile}: give multiples of {reduction}, the tile the smaller")
    turns = report.turns(flags, size)
    with tempfile.TemporaryDirectory() as folder:
        files = {side: Path(folder) / f"{side}.npy" for side in tiled.SIDES}
        workers = {
            side: worker("benchmarks.tiled", side, size.name, str(pixels), str(tile), str(file))
            for side, file in files.items()
        }
        measured = alternate(workers, **turns, together=size.together)
        shown = [np.load(files[side]) for side in tiled.SIDES]
    whole, parts = (measured[side] for side in tiled.SIDES)
    results: dict[str, Any] = {
        "case": {"size": size.name, "pixels": pixels, "tile": tile},
        "ratio_of_medians": parts.median / whole.median,
        "median_of_ratios": pairwise(parts, whole),
        "ratio_of_peaks": parts.peak / whole.peak,
        "sides": {side: m.asdict() for side, m in measured.items()},
    }
    text = report.sides(measured)
    text += f"\n\ntiles/whole: time {results['median_of_ratios']:.2f}, memory {results['ratio_of_peaks']:.2f}"
    if size.published:
        results["seams"] = compare(shown[0], shown[1], borders(pixels // reduction, tile // reduction, reduction))
        text += "\n\n" + report.table(["", ""], [[n, f"{v:.3g}"] for n, v in results["seams"].items()])
    title = f"Decoding {size.name}, {pixels} px a side, whole and in tiles of {tile} px"
    report.answer(flags["json"], title, text, results)


def borders(length: int, tile: int, reduction: int) -> np.ndarray:
    """Return, for all lines between neighbouring pixels of an axis, whether a tile begins or ends there: [pixels - 1].

    `length` and `tile` are in latents.
    """
    from gm.sampling import vae_decode

    return np.diff(vae_decode.tile_axis(length, tile, reduction)[1] > 0, axis=1).any(axis=0)


def compare(whole: np.ndarray, tiles: np.ndarray, lines: np.ndarray) -> dict[str, float]:
    """Return how uint8 images [N, H, H, 3] differ; `lines` [H - 1] are where tiles begin or end, on both axes."""
    whole, tiles = whole.astype(np.float64), tiles.astype(np.float64)
    error = tiles - whole
    return {
        "largest difference": float(np.abs(error).max()),
        "mean difference": float(np.abs(error).mean()),
        "images": float(len(whole)),
        "borders, a side": float(lines.sum()),
        "steps across borders/elsewhere, whole": _steps(whole, lines) / _steps(whole, ~lines),
        "steps across borders/elsewhere, tiles": _steps(tiles, lines) / _steps(tiles, ~lines),
        "steps of the difference, across borders": _steps(error, lines),
        "steps of the difference, elsewhere": _steps(error, ~lines),
    }


def _steps(values: np.ndarray, lines: np.ndarray) -> float:
    """Return the mean absolute difference of pixels on both sides of the `lines`, upright and level."""
    across = [np.abs(np.diff(values, axis=axis)).mean(axis=(0, 3 - axis, 3)) for axis in (1, 2)]
    return float(np.mean([steps[lines].mean() for steps in across]))


if __name__ == "__main__":
    cli.run(main)
