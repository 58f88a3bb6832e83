"""Embedding files in the layouts of other programs' training scripts.

diffusers' writes `learned_embeds-steps-500.safetensors`, at the end `learned_embeds.safetensors`, for SDXL
`learned_embeds_2*` too; the numbers are updates. `token_identifier.txt` and `type_of_concept.txt` are those of the
Hub's sd-concepts-library.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gm.embeddings import io as embedding_io
from gm.embeddings import merging
from gm.embeddings.diffusers_files import IDENTIFIER
from gm.embeddings.embedding import NO_POOLING, Embedding
from gm.embeddings.embedding_file import EmbeddingFile
from gm.errors import UserError
from gm.runtime import atomic_io
from gm.training.concept_data import TrainingConcept

_STEM = "learned_embeds"
_TYPE_OF_CONCEPT = "type_of_concept.txt"
_KOHYA_SUFFIXES = (".pt", ".safetensors")
PATTERNS = (f"{_STEM}*.safetensors", f"{_STEM}*.bin", IDENTIFIER, _TYPE_OF_CONCEPT)


def save(folder: Path, trained: Sequence[Embedding], suffix: str, updates: int | None = None) -> list[Path]:
    """Write the embeddings as diffusers' script does after `updates`, or at the end; return the paths."""
    name = _STEM if updates is None else f"{_STEM}-steps-{updates}"
    file = _joined(trained)
    if suffix == "bin":  # it holds vectors alone: the files of this toolkit beside it have the rest
        file = EmbeddingFile("diffusers", file.vectors)
    return embedding_io.write_file(file, folder / f"{name}.{suffix}", "diffusers", overwrite=True)


def save_concept(folder: Path, concepts: Sequence[TrainingConcept]) -> None:
    """Write the placeholder token and the type of a single concept."""
    if len(concepts) > 1:
        return
    texts = {IDENTIFIER: concepts[0].placeholder_token, _TYPE_OF_CONCEPT: concepts[0].config.learnable_property}
    for name, text in texts.items():
        with atomic_io.atomic_write(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def save_as(path: Path, trained: Sequence[Embedding]) -> None:
    """Write the embeddings to `path` as kohya's scripts do: `sdxl_train_textual_inversion.py` by text encoder, that of
    Stable Diffusion 1 and 2 as `emb_params`. UserError for another suffix than theirs.
    """
    check_output_name(path.name)
    format_ = "kohya" if trained[0].pooling == NO_POOLING else "clip"
    embedding_io.write_file(_joined(trained), path, format_, overwrite=True)


def check_output_name(name: str | None, num_concepts: int = 1) -> None:
    """Raise UserError for a name that `save_as` could not write, and for more concepts than its format holds."""
    if name is not None and num_concepts > 1:
        raise UserError(
            f"--output_name {name} holds one embedding, and there are {num_concepts} concepts; leave it out"
        )
    if name is not None and (Path(name).suffix not in _KOHYA_SUFFIXES or Path(name).name != name):
        raise UserError(f"--output_name {name} must be the name of a file that ends in {' or '.join(_KOHYA_SUFFIXES)}")


def _joined(trained: Sequence[Embedding]) -> EmbeddingFile:
    files = [embedding_io.to_embedding_file(embedding) for embedding in trained]
    return merging.merge({str(number): file for number, file in enumerate(files)})
