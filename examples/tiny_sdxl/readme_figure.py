"""Figure of the README: training images, images of the initializer token, images of the trained concept.

python examples/tiny_sdxl/readme_figure.py --target docs/images/strip.png
"""

from pathlib import Path

import numpy as np
from PIL import Image

from examples.tiny_sdxl import measure
from examples.tiny_sdxl.concepts import CONFETTI, HUMBUG, UnseenConcept
from examples.tiny_sdxl.image_grid import image_grid
from gm import api
from gm.api import Embedding, Toolkit
from gm.config import cli
from gm.config.parser import Parser

SCENES = {
    HUMBUG.placeholder_token: (
        "a {}",
        "a {} on a white background",
        "a {} on a blue background",
        "a small {} at the top left, yellow background",
        "a {} with a black outline",
    ),
    CONFETTI.placeholder_token: (
        "a red heart in the style of {}",
        "a blue star in the style of {}",
        "a yellow circle on a black background in the style of {}",
        "a white square in the style of {}",
        "an orange cross on a navy background in the style of {}",
    ),
}


_SIDE = 88  # pixels of an image: the figure is 362 pixels high


def figure_rows(toolkit: Toolkit, target: UnseenConcept, embedding: Embedding) -> dict[str, list[np.ndarray]]:
    """Return three labelled rows: training images, images of the initializer token, images of the concept."""
    folder, scenes = Path("datasets") / target.folder, SCENES[target.placeholder_token]
    training_images = [np.asarray(Image.open(path).convert("RGB")) for path in sorted(folder.iterdir())]
    before = [scene.format(target.initializer_token) for scene in scenes]
    after = [scene.format(target.placeholder_token) for scene in scenes]
    return {
        f"training images of the {target.learnable_property} {target.placeholder_token}": training_images,
        f"initializer: “{before[0]}”, …": api.generate(toolkit, before, batch_size=len(before), seed=7),
        f"result: “{after[0]}”, …": api.generate(toolkit, after, [embedding], batch_size=len(after), seed=7),
    }


def main() -> None:
    parser = Parser("Generate the figure of the README; takes a few minutes.")
    parser.add_config("configs/training/tiny_textual_inversion.yaml")
    parser.add_path("--weight", "(default: %(default)s)", default="checkpoints/tiny_sd_xl_base.safetensors")
    parser.add_path("--target", "(default: %(default)s)", default="docs/images/strip.png")
    flags = parser.read()
    toolkit = api.load(flags["config"], run={"weight": flags["weight"]})
    grids = []
    for target in (HUMBUG, CONFETTI):
        embedding = measure.train_concept(toolkit, target, toolkit.config.concept.num_vectors)
        grids.append(np.asarray(image_grid(figure_rows(toolkit, target, embedding), _SIDE)))
    Image.fromarray(np.concatenate(grids, axis=1)).save(flags["target"], optimize=True)


if __name__ == "__main__":
    cli.run(main)
