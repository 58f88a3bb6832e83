"""The folder that a word is shared as, in the layout of the Hub's sd-concepts-library.

`token_identifier.txt` holds the word, `type_of_concept.txt` what it stands for, `learned_embeds.safetensors` and
`learned_embeds_2.safetensors` the rows as diffusers loads them; `<word>.safetensors` holds both for other programs.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from gm.embeddings import interchange
from gm.embeddings import io as embedding_io
from gm.embeddings.interchange import IDENTIFIER
from gm.errors import UserError
from gm.hub import model_card
from gm.hub.export import Publication
from gm.runtime import atomic_io
from gm.sampling import image_files

TYPE, CARD, IMAGES = "type_of_concept.txt", "README.md", "images"


def names(made: Publication) -> list[str]:
    """Return the files of the folder, seen from it, the images last."""
    shown = [f"{IMAGES}/{number}.png" for number in range(len(made.images))]
    return [f"{made.name}.safetensors", *model_card.PAIR, IDENTIFIER, TYPE, CARD, *shown]


def write(made: Publication, target: str | Path, overwrite: bool = False) -> list[Path]:
    """Write the folder and return its files; what else is in it stays.

    Raises UserError if one of them is there and not to be overwritten, and if `target` cannot be written to.
    """
    target = Path(target)
    atomic_io.check_writable(target, "--target")
    all_names = names(made)
    interchange.check_not_existing([target / name for name in all_names], overwrite)
    shown = all_names[len(all_names) - len(made.images) :]
    content = [_pixels(image.path) for image in made.images]  # before anything is replaced: one may be among them
    try:
        (target / IMAGES if shown else target).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder --target {target}: {error.strerror}; choose another") from error
    concept = made.concept
    embedding_io.save(concept, target / all_names[0])
    interchange.write(embedding_io.to_embedding_file(concept), target / model_card.PAIR[0], "diffusers", overwrite=True)
    for image, name, pixels in zip(made.images, shown, content, strict=True):
        image_files.write(pixels, image.recipe, target / name)
    texts = {IDENTIFIER: concept.placeholder_token, TYPE: made.kind, CARD: model_card.text(made, shown)}
    for name, text in texts.items():
        with atomic_io.atomic_write(target / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return [target / name for name in all_names]


def _pixels(path: Path) -> np.ndarray:
    """Return an image [H, W, 3] without what a camera or a program wrote beside it."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))
