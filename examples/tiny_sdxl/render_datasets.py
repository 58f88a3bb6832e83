"""Render the two datasets of the tiny model: `python examples/tiny_sdxl/render_datasets.py [--folder datasets]`."""

from __future__ import annotations

import argparse
from pathlib import Path

from examples.tiny_sdxl.concepts import CONFETTI, HUMBUG
from gm.config import paths

DATASETS = {
    "humbug": HUMBUG.images,
    "confetti": CONFETTI.images,
}


def render(folder: Path, seed: int = 0) -> list[Path]:
    """Write each dataset to a folder inside `folder`; return the files."""
    written = []
    for name, images in DATASETS.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for title, image in images(seed).items():
            path = folder / name / f"{title}.png"
            image.save(path, optimize=True)
            written.append(path)
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description="Render the datasets of the tiny model.")
    parser.add_argument("--folder", type=paths.expand, default="datasets", help="parent folder (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the scenes (default: %(default)s)")
    arguments = parser.parse_args()
    for path in render(Path(arguments.folder), arguments.seed):
        print(path)


if __name__ == "__main__":
    main()
