"""Convert, inspect, merge and mix embedding files of any program.

python tools/convert_weights/embedding.py inspect --source cat-toy.safetensors
python tools/convert_weights/embedding.py convert --source learned_embeds.safetensors --target cat-toy_ti.ckpt
python tools/convert_weights/embedding.py merge --source cat_ti.ckpt dog_ti.ckpt --target learned_embeds.safetensors
python tools/convert_weights/embedding.py mix --source cat_ti.ckpt dog_ti.ckpt --weights 0.7 0.3 \\
    --placeholder_token "<cat-dog>" --target cat-dog_ti.ckpt
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gm.checkpoints import containers, key_mapping
from gm.config import cli
from gm.embeddings import io as embedding_io
from gm.embeddings import merging
from gm.embeddings.formats import FORMATS, EncoderVectors, MindoneFormat
from gm.embeddings.io import EmbeddingFile
from gm.embeddings.nearest_tokens import nearest_tokens
from gm.errors import UserError

_DEFAULT_FORMATS = {".ckpt": "mindspore", ".safetensors": "clip", ".pti": "cog", ".pt": "a1111", ".bin": "diffusers"}
_NEAREST_COUNT = 5


def main() -> None:
    flags = _parse_flags()
    command, sources, tokens = flags["what"], flags["source"], flags["placeholder_token"] or []
    if len(sources) > 1 and command in ("convert", "inspect"):
        raise UserError(f"{command} takes one --source; merge and mix take several")
    if len(tokens) not in (0, 1 if command == "mix" else len(sources)):
        raise UserError("give as many --placeholder_token as there are --source, or for mix one")
    if command == "inspect":
        tables = _read_token_tables(flags["weight"]) if flags["weight"] else None
        file = _rename(embedding_io.read_file(sources[0]), tokens[0] if tokens else None)
        print(json.dumps(describe(file, tables), indent=2, ensure_ascii=False))
        return
    if not flags["target"]:
        raise UserError("--target is missing; --help lists the flags")
    target, overwrite = Path(flags["target"]), flags["overwrite"] == "true"
    if command == "mix":
        paths = mix(sources, flags["weights"], tokens, target, overwrite)
    else:
        pairs = zip(sources, tokens or [None] * len(sources), strict=True)
        files = [_rename(embedding_io.read_file(source), token) for source, token in pairs]
        if command == "merge":
            paths = embedding_io.write_file(merging.merge(files), target, flags["format"] or "diffusers", overwrite)
        else:
            paths = convert(files[0], sources[0], target, flags["format"], overwrite)
    for path in paths:
        print(f"wrote {path}")


def describe(file: EmbeddingFile, tables: Mapping[str, np.ndarray] | None = None) -> dict[str, Any]:
    """Return the contents of an embedding file for JSON; with token `tables` by encoder also the nearest tokens."""
    rules = {token or "": file.token_metadata(token)["pooling"] for token in file.vectors}
    return {
        "format": file.format,
        "program": FORMATS[file.format].program,
        "pooling": rules if len(set(rules.values())) > 1 else next(iter(rules.values())),
        "embeddings": {token or "": _describe_vectors(vectors, tables) for token, vectors in file.vectors.items()},
        "metadata": {key: _parse_json(value) for key, value in file.metadata.items()},
    }


def convert(file: EmbeddingFile, source: str | Path, target: Path, format_: str | None, overwrite: bool) -> list[Path]:
    """Write `file`, which was read from `source`, to `target`; return the paths.

    Raises UserError if a target exists unless `overwrite` is set, and for a format that cannot hold the embedding.
    """
    format_ = format_ or _DEFAULT_FORMATS.get(target.suffix)
    if format_ is None:
        raise UserError(f"{target} must end in {', '.join(embedding_io.SUFFIXES)}, which says what to write")
    if target.suffix not in embedding_io.SAVE_FORMATS or format_ != _DEFAULT_FORMATS[target.suffix]:
        return embedding_io.write_file(file, target, format_, overwrite)
    # These two, the formats of training, need every text encoder, a placeholder token and finite vectors.
    embedding = embedding_io.load(source)
    embedding_io.check_not_existing([target], overwrite)
    (token,) = file.vectors
    placeholder_token = token or embedding.placeholder_token
    embedding_io.save(dataclasses.replace(embedding, placeholder_token=placeholder_token), target)
    return [target]


def mix(
    sources: Sequence[str], weights: Sequence[float] | None, tokens: Sequence[str], target: Path, overwrite: bool
) -> list[Path]:
    """Write the weighted sum of the embeddings in `sources` (default: their mean); return the path."""
    embeddings = [embedding_io.load(source) for source in sources]
    embedding_io.check_not_existing([target], overwrite)
    weights = weights or [1 / len(embeddings)] * len(embeddings)
    token = tokens[0] if tokens else embeddings[0].placeholder_token
    embedding_io.save(merging.mix(embeddings, weights, token), target)
    return [target]


def _describe_vectors(vectors: EncoderVectors, tables: Mapping[str, np.ndarray] | None) -> dict[str, Any]:
    description: dict[str, Any] = {}
    for encoder, array in vectors.items():
        norms = [round(float(norm), 4) for norm in np.linalg.norm(array, axis=1)]
        description[encoder] = {"vectors": len(array), "width": array.shape[1], "norms": norms}
        if tables:
            nearest = nearest_tokens(array, tables[encoder], _NEAREST_COUNT)
            description[encoder]["nearest"] = [[f"{token} {cosine:.2f}" for token, cosine in each] for each in nearest]
    return description


def _read_token_tables(weight: str) -> dict[str, np.ndarray]:
    """Return the token embeddings of each text encoder of a model, without reading the rest of it."""
    tensors = containers.read(weight).tensors
    tables = {}
    for encoder, name in MindoneFormat.keys.items():
        tensor = tensors.get(name) or tensors.get(key_mapping.published_name(name))
        if tensor is None:
            raise UserError(f"--weight {weight} is not an SDXL model: its token embeddings are missing")
        tables[encoder] = tensor.read()
    return tables


def _parse_json(value: Any) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) and value[:1] in ("{", "[") else value
    except ValueError:
        return value


def _rename(file: EmbeddingFile, token: str | None) -> EmbeddingFile:
    """Return `file` with another placeholder token, or the one in its metadata; UserError if it holds several."""
    token = token or (file.metadata.get("placeholder_token") if None in file.vectors else None)
    if token is None:
        return file
    if len(file.vectors) != 1:
        tokens = ", ".join(str(each) for each in file.vectors)
        raise UserError(f"--placeholder_token renames one embedding, and the file holds several: {tokens}")
    return dataclasses.replace(file, vectors={token: next(iter(file.vectors.values()))})


def _parse_flags() -> dict[str, Any]:
    parser = cli.Parser("Convert, inspect, merge or mix embedding files.", ("source",))
    parser.add_argument("what", choices=("convert", "inspect", "merge", "mix"), help="what to do")
    parser.add_path("--source", "embedding file of any program, or folder that diffusers wrote", nargs="+")
    parser.add_path("--target", f"file to write, ending in {', '.join(embedding_io.SUFFIXES)}")
    programs = "; ".join(f"{name}: {format_.program}" for name, format_ in FORMATS.items())
    parser.add_argument(
        "--format", choices=tuple(FORMATS), help=f"format to write (default: by the suffix of --target) {programs}"
    )
    parser.add_argument(
        "--placeholder_token", nargs="+", help="placeholder token to write, one for each --source (default: the file's)"
    )
    parser.add_argument("--weights", nargs="+", type=float, help="weight of each --source in mix (default: their mean)")
    parser.add_path("--weight", "SDXL weights, .safetensors or .ckpt, whose tokens inspect compares the vectors with")
    parser.add_overwrite()
    return parser.read()


def entry_point() -> None:
    """Run `main` as the console script gm-embedding does."""
    cli.run(main)


if __name__ == "__main__":
    entry_point()
