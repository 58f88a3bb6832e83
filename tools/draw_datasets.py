"""Draw the example datasets from nothing: `python tools/draw_datasets.py [--folder datasets] [--seed 0]`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.drawings import cat_toy, chinese_art
from tools.tiny_model.concepts import CONFETTI, HUMBUG

SETS = {
    "cat_toy": cat_toy.pictures,
    "chinese_art": chinese_art.pictures,
    "humbug": HUMBUG.pictures,
    "confetti": CONFETTI.pictures,
}
FLAT = ("humbug", "confetti")  # kept as PNG, which is smaller for flat colours and keeps them


def draw(folder: Path, seed: int = 0) -> list[Path]:
    """Write each dataset into its own folder inside `folder`; return the files."""
    written = []
    for name, pictures in SETS.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for title, picture in pictures(seed).items():
            path = folder / name / f"{title}{'.png' if name in FLAT else '.jpg'}"
            picture.save(path, quality=88, optimize=True)
            written.append(path)
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the example datasets; takes about 15 seconds.")
    parser.add_argument("--folder", type=Path, default=Path("datasets"), help="where to (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of textures and brush (default: %(default)s)")
    arguments = parser.parse_args()
    for path in draw(arguments.folder, arguments.seed):
        print(path)


if __name__ == "__main__":
    main()
