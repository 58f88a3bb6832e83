"""Learned words from one program's file to another's, several in one, one out of several, and a look into a file.

python tools/convert_weights/embedding.py inspect --source cat-toy.safetensors
python tools/convert_weights/embedding.py convert --source learned_embeds.safetensors --target cat-toy_ti.ckpt
python tools/convert_weights/embedding.py merge --source cat_ti.ckpt dog_ti.ckpt --target learned_embeds.safetensors
python tools/convert_weights/embedding.py mix --source cat_ti.ckpt dog_ti.ckpt --weights 0.7 0.3 \\
    --placeholder_token "<cat-dog>" --target cat-dog_ti.ckpt
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gm.checkpoints import containers, key_mapping
from gm.config import cli
from gm.embeddings import interchange, merging
from gm.embeddings import io as embedding_io
from gm.embeddings.formats import CLIP_G_TABLE, CLIP_L_TABLE, FORMATS, EncoderVectors
from gm.embeddings.interchange import EmbeddingFile
from gm.embeddings.nearest_tokens import nearest_tokens
from gm.errors import UserError

_BY_ENDING = {".ckpt": "mindspore", ".safetensors": "clip", ".pti": "cog", ".pt": "a1111", ".bin": "diffusers"}
_NEAREST = 5


def main() -> None:
    flags = _flags()
    what, sources, words = flags["what"], flags["source"], flags["placeholder_token"] or []
    if len(sources) > 1 and what in ("convert", "inspect"):
        raise UserError(f"{what} takes one --source; merge and mix take several")
    if len(words) not in (0, 1 if what == "mix" else len(sources)):
        raise UserError("give as many --placeholder_token as there are --source, or for mix one")
    if what == "inspect":
        encoders = _tables(flags["weight"]) if flags["weight"] else None
        learned = _renamed(interchange.read(sources[0]), words[0] if words else None)
        print(json.dumps(described(learned, encoders), indent=2, ensure_ascii=False))
        return
    if not flags["target"]:
        raise UserError("--target is missing; --help lists the flags")
    target, overwrite = Path(flags["target"]), flags["overwrite"] == "true"
    if what == "mix":
        paths = mix(sources, flags["weights"], words, target, overwrite)
    else:
        renamed = [
            _renamed(interchange.read(k), w) for k, w in zip(sources, words or [None] * len(sources), strict=True)
        ]
        if what == "merge":
            paths = interchange.write(merging.merge(renamed), target, flags["format"] or "diffusers", overwrite)
        else:
            paths = convert(renamed[0], sources[0], target, flags["format"], overwrite)
    for path in paths:
        print(f"wrote {path}")


def described(learned: EmbeddingFile, encoders: tuple[np.ndarray, np.ndarray] | None = None) -> dict[str, Any]:
    """Return what an embedding file holds, for JSON; with both `encoders`' tables also the tokens nearest to it."""
    rules = {word or "": learned.own(word)["pooling"] for word in learned.words}
    return {
        "format": learned.format,
        "program": FORMATS[learned.format].program,
        "pooling": rules if len(set(rules.values())) > 1 else next(iter(rules.values())),
        "words": {word or "": _described(rows, encoders) for word, rows in learned.words.items()},
        "notes": {name: _parsed(value) for name, value in learned.notes.items()},
    }


def convert(
    learned: EmbeddingFile, source: str | Path, target: Path, format_: str | None, overwrite: bool
) -> list[Path]:
    """Write what was `learned` from the file `source` to `target`; return the paths.

    UserError if something is there that is not to be overwritten, and for a format that cannot hold it.
    """
    format_ = format_ or _BY_ENDING.get(target.suffix)
    if format_ is None:
        raise UserError(f"{target} must end in {', '.join(interchange.ENDINGS)}, which says what to write")
    if target.suffix not in embedding_io.NAMES or format_ != _BY_ENDING[target.suffix]:
        return interchange.write(learned, target, format_, overwrite)
    # The two kinds that training writes hold more than rows.
    concept = embedding_io.load(source)
    interchange.check_not_existing([target], overwrite)
    (word,) = learned.words
    embedding_io.save(dataclasses.replace(concept, placeholder_token=word or concept.placeholder_token), target)
    return [target]


def mix(
    sources: Sequence[str], weights: Sequence[float] | None, words: Sequence[str], target: Path, overwrite: bool
) -> list[Path]:
    """Write the sum of the words in `sources`, each times its weight (default: their mean); return the path."""
    concepts = [embedding_io.load(source) for source in sources]
    interchange.check_not_existing([target], overwrite)
    shares = weights or [1 / len(concepts)] * len(concepts)
    embedding_io.save(merging.mix(concepts, shares, words[0] if words else concepts[0].placeholder_token), target)
    return [target]


def _described(rows: EncoderVectors, encoders: tuple[np.ndarray, np.ndarray] | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for number, (name, own) in enumerate(zip(("clip_l", "clip_g"), rows, strict=True)):
        if own is None:
            continue
        norms = np.linalg.norm(own, axis=1)
        found[name] = {"vectors": len(own), "width": own.shape[1], "norms": [round(float(n), 4) for n in norms]}
        if encoders:
            near = nearest_tokens(own, encoders[number], _NEAREST)
            found[name]["nearest"] = [[f"{word} {cosine:.2f}" for word, cosine in row] for row in near]
    return found


def _tables(weight: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the token tables of both encoders of a model, without reading the rest of it."""
    tensors = containers.read(weight).tensors
    one, two = (
        tensors.get(name) or tensors.get(key_mapping.published_name(name)) for name in (CLIP_L_TABLE, CLIP_G_TABLE)
    )
    if one is None or two is None:
        raise UserError(f"--weight {weight} holds no SDXL model: its token tables are missing")
    return one.read(), two.read()


def _parsed(value: Any) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) and value[:1] in ("{", "[") else value
    except ValueError:
        return value


def _renamed(learned: EmbeddingFile, word: str | None) -> EmbeddingFile:
    """Return what was learned under another word, or the one that its notes say; UserError for a file of several."""
    word = word or (learned.notes.get("placeholder_token") if None in learned.words else None)
    if word is None:
        return learned
    if len(learned.words) != 1:
        words = ", ".join(str(each) for each in learned.words)
        raise UserError(f"--placeholder_token is for one word, and the file holds several: {words}")
    return dataclasses.replace(learned, words={word: next(iter(learned.words.values()))})


def _flags() -> dict[str, Any]:
    parser = cli.Parser("Convert a learned word into another program's file, or look into one.", ("source",))
    parser.add_argument("what", choices=("convert", "inspect", "merge", "mix"), help="what to do")
    parser.add_argument("--source", nargs="+", help="embedding file of any program, or the folder that diffusers wrote")
    parser.add_argument("--target", help=f"file to write, which ends in {', '.join(interchange.ENDINGS)}")
    programs = "; ".join(f"{name}: {each.program}" for name, each in FORMATS.items())
    parser.add_argument("--format", choices=tuple(FORMATS), help=f"(default: by the target's ending) {programs}")
    parser.add_argument(
        "--placeholder_token", nargs="+", help="word to call it, where the file says none or another is wanted"
    )
    parser.add_argument("--weights", nargs="+", type=float, help="of each word in mix (default: their mean)")
    parser.add_argument("--weight", help="model whose words to compare the rows with, .safetensors or .ckpt")
    parser.add_overwrite()
    return parser.read()


def entry_point() -> None:
    """Run `main` as the console script gm-embedding does."""
    cli.run(main)


if __name__ == "__main__":
    entry_point()
