"""Draw the image at the top of the README: what is learned from, the word before learning, the word after.

python examples/tiny_sdxl/show.py --target docs/images/learned.png
"""

from pathlib import Path

import numpy as np
from PIL import Image

from examples.tiny_sdxl import measure
from examples.tiny_sdxl.concepts import CONFETTI, HUMBUG, Unseen
from examples.tiny_sdxl.sheet import sheet
from gm import api
from gm.api import Embedding, Toolkit
from gm.config import cli

SCENES = {
    HUMBUG.word: (
        "a {}",
        "a {} on a white background",
        "a {} on a blue background",
        "a small {} at the top left, yellow background",
        "a {} with a black outline",
    ),
    CONFETTI.word: (
        "a red heart in the style of {}",
        "a blue star in the style of {}",
        "a yellow circle on a black background in the style of {}",
        "a white square in the style of {}",
        "an orange cross on a navy background in the style of {}",
    ),
}


def rows(toolkit: Toolkit, thing: Unseen, concept: Embedding) -> dict[str, list[np.ndarray]]:
    """Return three labelled rows of images: the folder's, the initial word's and the learned word's."""
    folder, scenes = Path("datasets") / thing.folder, SCENES[thing.word]
    photographs = [np.asarray(Image.open(path).convert("RGB")) for path in sorted(folder.iterdir())]
    before = [scene.format(thing.initializer) for scene in scenes]
    after = [scene.format(thing.word) for scene in scenes]
    return {
        f"what the {thing.kind} {thing.word} is learned from": photographs,
        f"before: “{before[0]}”, “{before[2]}”, …": api.generate(toolkit, before, batch_size=len(before), seed=7),
        f"after: “{after[0]}”, “{after[2]}”, …": api.generate(toolkit, after, [concept], batch_size=len(after), seed=7),
    }


def main() -> None:
    parser = cli.Parser("Draw the image at the top of the README; takes a few minutes.")
    parser.add_argument(
        "--config", default="configs/training/tiny_textual_inversion.yaml", help="(default: %(default)s)"
    )
    parser.add_argument("--weight", default="checkpoints/tiny_sd_xl_base.safetensors", help="(default: %(default)s)")
    parser.add_argument("--target", default="docs/images/learned.png", help="(default: %(default)s)")
    flags = parser.read()
    toolkit = api.load(flags["config"], run={"weight": flags["weight"]})
    images: dict[str, list[np.ndarray]] = {}
    for thing in (HUMBUG, CONFETTI):
        images |= rows(toolkit, thing, measure.learn(toolkit, thing, toolkit.config.concept.num_vectors))
    sheet(images).save(flags["target"], optimize=True)


if __name__ == "__main__":
    cli.run(main)
