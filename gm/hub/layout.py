"""Folder of a published embedding, in the layout of the Hub's sd-concepts-library.

`token_identifier.txt` holds the placeholder token, `type_of_concept.txt` the type of the concept,
`learned_embeds.safetensors` and, of SDXL, `learned_embeds_2.safetensors` the vectors as diffusers loads them;
`<placeholder token>.safetensors` holds those of all text encoders for other programs.
"""

from __future__ import annotations

from pathlib import Path

from gm.embeddings import io as embedding_io
from gm.embeddings.diffusers_files import IDENTIFIER
from gm.errors import UserError
from gm.hub import model_card
from gm.hub.export import Publication
from gm.runtime import atomic_io
from gm.sampling import image_files

TYPE_OF_CONCEPT = "type_of_concept.txt"
MODEL_CARD = "README.md"
IMAGES = "images"


def file_names(publication: Publication) -> list[str]:
    """Return the files of the folder, relative to it, the images last."""
    single = f"{publication.name}.safetensors"
    diffusers_files = model_card.diffusers_files(publication.embedding)
    return [single, *diffusers_files, IDENTIFIER, TYPE_OF_CONCEPT, MODEL_CARD, *_image_names(publication)]


def write(publication: Publication, target: str | Path, overwrite: bool = False) -> list[Path]:
    """Write the folder and return its files; other files in it stay.

    Raises UserError if one of the files exists unless `overwrite` is set, and if `target` is not writable.
    """
    target = Path(target)
    atomic_io.check_writable(target, "--target")
    names, image_names = file_names(publication), _image_names(publication)
    embedding_io.check_not_existing([target / name for name in names], overwrite)
    try:
        (target / IMAGES if image_names else target).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder --target {target}: {error.strerror}; choose another") from error
    embedding = publication.embedding
    embedding_io.save(embedding, target / names[0])
    embedding_file = embedding_io.to_embedding_file(embedding)
    embedding_io.write_file(embedding_file, target / model_card.DIFFUSERS_FILES[0], "diffusers", overwrite=True)
    for image, name in zip(publication.images, image_names, strict=True):
        image_files.write(image.pixels, image.parameters, target / name)
    texts = {
        IDENTIFIER: embedding.placeholder_token,
        TYPE_OF_CONCEPT: publication.type_of_concept,
        MODEL_CARD: model_card.render(publication, image_names),
    }
    for name, text in texts.items():
        with atomic_io.atomic_write(target / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return [target / name for name in names]


def _image_names(publication: Publication) -> list[str]:
    return [f"{IMAGES}/{number}.png" for number in range(len(publication.images))]
