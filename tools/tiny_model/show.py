"""Draw the picture at the top of the README: what is learned from, the word before learning, the word after.

python tools/tiny_model/show.py --target docs/pictures/learned.png
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gm import api, command_line
from gm.api import Toolkit
from tools.tiny_model.concepts import CONFETTI, HUMBUG, Unseen

SCENES = {
    HUMBUG.word: (
        "a photo of {}",
        "a {} on a white background",
        "a {} on a blue background",
        "a small {} at the top left on a yellow background",
        "a large {} with a black outline",
    ),
    CONFETTI.word: (
        "a picture in the style of {}",
        "a red heart in the style of {}",
        "a yellow star on a black background in the style of {}",
        "a white square in the style of {}",
        "a blue and white striped circle in the style of {}",
    ),
}
_SIDE, _GAP, _LINE = 128, 8, 22  # pixels: of a picture, between pictures, of a line of text


def rows(toolkit: Toolkit, thing: Unseen) -> dict[str, list[Image.Image]]:
    """Return three labelled rows of pictures: the folder's, the initial word's and the learned word's."""
    folder = Path("datasets") / thing.folder
    concept = api.learn(toolkit, folder, thing.word, initializer_token=thing.initializer, learnable_property=thing.kind)
    photographs = [Image.open(path).convert("RGB") for path in sorted(folder.iterdir())]

    def drawn(word: str, concepts: Sequence[api.Concept]) -> list[Image.Image]:
        prompts = [scene.format(word) for scene in SCENES[thing.word]]
        return [Image.fromarray(p) for p in api.generate(toolkit, prompts, concepts, batch_size=len(prompts), seed=7)]

    return {
        f"{len(photographs)} pictures to learn the {thing.kind} {thing.word} from": photographs,
        f"before: the same prompts with the word “{thing.initializer}”": drawn(thing.initializer, []),
        "after: " + "  ·  ".join(scene.format(thing.word) for scene in SCENES[thing.word][1:3]) + "  · …": drawn(
            thing.word, [concept]
        ),
    }


def sheet(labelled: dict[str, list[Image.Image]]) -> Image.Image:
    """Return the rows below one another, each under its label."""
    columns = max(map(len, labelled.values()))
    width, height = columns * (_SIDE + _GAP) + _GAP, len(labelled) * (_SIDE + _LINE + _GAP) + _GAP
    canvas = Image.new("RGB", (width, height), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(13)
    for row, (label, pictures) in enumerate(labelled.items()):
        top = row * (_SIDE + _LINE + _GAP) + _GAP // 2
        pen.text((_GAP, top), label, fill=(40, 40, 40), font=font)
        for column, picture in enumerate(pictures):
            large = picture.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
            canvas.paste(large, (_GAP + column * (_SIDE + _GAP), top + _LINE))
    return canvas


def main() -> None:
    parser = command_line.Parser("Draw the picture at the top of the README; takes about five minutes.")
    parser.add_argument(
        "--config", default="configs/training/tiny_textual_inversion.yaml", help="(default: %(default)s)"
    )
    parser.add_argument("--target", default="docs/pictures/learned.png", help="(default: %(default)s)")
    flags = parser.read()
    toolkit = api.load(flags["config"])
    sheets = [sheet(rows(toolkit, thing)) for thing in (HUMBUG, CONFETTI)]
    joined = np.concatenate([np.asarray(s) for s in sheets])
    Image.fromarray(joined).save(flags["target"], optimize=True)


if __name__ == "__main__":
    command_line.run(main)
