"""Convert, inspect, merge and mix embedding files of any program.

python tools/convert_weights/embedding.py inspect --source cat-toy.safetensors
python tools/convert_weights/embedding.py convert --source learned_embeds.safetensors --target cat-toy_ti.ckpt
python tools/convert_weights/embedding.py merge --source cat_ti.ckpt dog_ti.ckpt --target embeddings
python tools/convert_weights/embedding.py mix --source cat_ti.ckpt dog_ti.ckpt --weights 0.7 0.3 \\
    --method slerp --placeholder_token "<cat-dog>" --target cat-dog_ti.ckpt
"""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gm.config import POOLING_RULES, cli, paths
from gm.config.parser import Parser
from gm.embeddings import description, merging, names
from gm.embeddings import io as embedding_io
from gm.embeddings.embedding import NO_POOLING, UNKNOWN_POOLING, file_name, safe_filename
from gm.embeddings.formats import ENCODERS, FORMATS
from gm.embeddings.io import EmbeddingFile
from gm.errors import UserError

log = logging.getLogger("gm")

_DEFAULT_FORMATS = {".ckpt": "mindspore", ".safetensors": "clip", ".pti": "cog", ".pt": "a1111", ".bin": "diffusers"}
_FLAGS = {  # that a command takes, beside those that all take
    "convert": {"target", "format", "overwrite"},
    "inspect": {"weight"},
    "merge": {"target", "format", "overwrite"},
    "mix": {"target", "weights", "method", "overwrite"},
}


def main() -> None:
    flags = _parse_flags()
    command, sources, tokens = flags["what"], flags["source"], flags["placeholder_token"] or []
    _check_flags(command, flags)
    if len(sources) > 1 and command in ("convert", "inspect"):
        raise UserError(f"{command} takes one --source; merge and mix take several")
    if len(tokens) not in (0, 1 if command == "mix" else len(sources)):
        raise UserError("give as many --placeholder_token as there are --source, or for mix one")
    rules = flags["pooling"] or [None]
    if len(rules) not in (1, len(sources)):
        raise UserError("give one --pooling for all --source, or as many as there are --source")
    rules = rules if len(rules) == len(sources) else rules * len(sources)
    if command == "inspect":
        tables = description.read_token_tables(flags["weight"]) if flags["weight"] else None
        file = _rename(_read(sources[0], rules[0]), tokens[0] if tokens else None)
        print(json.dumps(description.describe(file, tables), indent=2, ensure_ascii=False))
        return
    if not flags["target"]:
        raise UserError("--target is missing; --help lists the flags")
    target, overwrite = Path(flags["target"]), flags["overwrite"] == "true"
    if command == "mix":
        paths = mix(sources, flags["weights"], tokens, rules, target, overwrite, flags["method"] or "linear")
    else:
        named = zip(sources, rules, tokens or [None] * len(sources), strict=True)
        files = [_rename(_read(source, rule), token) for source, rule, token in named]
        if command == "merge":
            paths = merge(sources, files, target, flags["format"], overwrite)
        else:
            paths = convert(files[0], sources[0], target, flags["format"], overwrite)
    for path in paths:
        print(f"wrote {path}")


def convert(file: EmbeddingFile, source: str | Path, target: Path, format_: str | None, overwrite: bool) -> list[Path]:
    """Write `file`, which was read from `source`, to `target`; return the paths.

    Raises UserError if a target exists unless `overwrite` is set, and for a format that cannot hold the embedding.
    """
    format_ = format_ or _DEFAULT_FORMATS.get(target.suffix)
    if format_ == "diffusers":
        file = _name(file, str(source))  # its files name the placeholder token
    if format_ is None:
        raise UserError(f"{target} must end in {', '.join(embedding_io.SUFFIXES)}, which says what to write")
    if target.suffix not in embedding_io.SAVE_FORMATS or format_ != _DEFAULT_FORMATS[target.suffix]:
        embedding_io.log_remarks(file, source)
        return embedding_io.write_file(file, target, format_, overwrite)
    # These two, the formats of training, need vectors that one of the families can use, and a placeholder token.
    embeddings = embedding_io.load_all(source, family=None)
    if len(embeddings) > 1:
        raise UserError(f"{source} holds several embeddings; --format diffusers writes them to one file")
    embedding_io.check_not_existing([target], overwrite)
    ((token, vectors),) = file.vectors.items()
    placeholder_token = token or embeddings[0].placeholder_token
    if len(vectors) == len(ENCODERS):
        file = dataclasses.replace(file, vectors={placeholder_token: embeddings[0].vectors})
        return embedding_io.write_file(file, target, format_, overwrite)
    embedding = dataclasses.replace(embeddings[0], placeholder_token=placeholder_token)
    if embedding.pooling != NO_POOLING:
        embedding = dataclasses.replace(embedding, pooling=file.token_metadata(token)["pooling"])
    embedding_io.save(embedding, target)
    return [target]


def merge(
    sources: Sequence[str], contents: Sequence[EmbeddingFile], target: Path, format_: str | None, overwrite: bool
) -> list[Path]:
    """Write the embeddings of several files, the `contents` of `sources`; return the paths.

    Without `format_` each gets a file of its own, since no program of SDXL reads several from one file: in the folder
    `target`, or beside each other under its name and suffix. Raises UserError for two equal placeholder tokens, and for
    a target that exists unless `overwrite` is set.
    """
    if len(set(sources)) < len(sources):
        raise UserError("--source has a file twice; give each file once")
    files = {source: _name(file, source) for source, file in zip(sources, contents, strict=True)}
    for source, file in files.items():
        embedding_io.log_remarks(file, source)
    merged = merging.merge(files)
    if format_:
        paths = embedding_io.write_file(merged, target, format_, overwrite)
        if len(merged.vectors) > 1:
            program = FORMATS[format_].program
            log.warning("%s holds several embeddings, as %s never do; only this toolkit reads it", target, program)
        return paths
    single = {
        str(token): dataclasses.replace(file, vectors={token: file.vectors[token]})
        for file in files.values()
        for token in file.vectors
    }
    targets = dict(zip(single, _targets(list(single), target), strict=True))
    embedding_io.check_not_existing(list(targets.values()), overwrite)
    paths = []
    for token, path in targets.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        paths += embedding_io.write_file(single[token], path, _default_format(single[token], path), overwrite)
    return paths


def mix(
    sources: Sequence[str],
    weights: Sequence[float] | None,
    tokens: Sequence[str],
    rules: Sequence[str | None],
    target: Path,
    overwrite: bool,
    method: str = "linear",
) -> list[Path]:
    """Write the weighted mixture of the embeddings in `sources` (default: their mean); return the path."""
    embeddings = [embedding_io.load(source, family=None) for source in sources]
    embeddings = [
        dataclasses.replace(embedding, pooling=rule or embedding.pooling)
        for embedding, rule in zip(embeddings, rules, strict=True)
    ]
    embedding_io.check_not_existing([target], overwrite)
    weights = weights or [1 / len(embeddings)] * len(embeddings)
    token = tokens[0] if tokens else embeddings[0].placeholder_token
    embedding_io.save(merging.mix(embeddings, weights, token, method), target)
    return [target]


def _targets(tokens: Sequence[str], target: Path) -> list[Path]:
    """Return a path for each placeholder token, which other programs take from the name of a file."""
    is_folder = target.is_dir() or not target.suffix
    if not is_folder and target.suffix not in embedding_io.SUFFIXES:
        raise UserError(f"{target} must be a folder or end in {', '.join(embedding_io.SUFFIXES)}")
    paths: list[Path] = []
    for token in tokens:
        name = safe_filename(token) or "concept"
        count = sum(safe_filename(other).lower() == safe_filename(token).lower() for other in tokens[: len(paths)])
        name = f"{name}-{count + 1}" if count else name
        paths.append(target / f"{name}.safetensors" if is_folder else target.with_stem(f"{target.stem}-{name}"))
    return paths


def _default_format(file: EmbeddingFile, path: Path) -> str:
    """Return the format for the suffix of `path` that can hold the vectors of `file`."""
    (vectors,) = file.vectors.values()
    is_sd15 = path.suffix == ".safetensors" and set(vectors) == {"clip_l"}
    return "kohya" if is_sd15 else _DEFAULT_FORMATS[path.suffix]


def _read(source: str, rule: str | None) -> EmbeddingFile:
    """Return the embedding file `source`, with the pooling rule that is given."""
    file = embedding_io.read_file(source)
    if rule is None:
        return file
    for token in file.vectors:
        known = file.token_metadata(token).get("pooling", rule)
        if known not in (rule, UNKNOWN_POOLING):
            log.warning("%s was trained with --pooling %s; the given %s is taken", source, known, rule)
    return file.with_pooling(rule)


def _rename(file: EmbeddingFile, token: str | None) -> EmbeddingFile:
    """Return `file` with another placeholder token, or the one in its metadata; UserError if it holds several."""
    token = token or (file.metadata.get("placeholder_token") if None in file.vectors else None)
    if token is None:
        return file
    if len(file.vectors) != 1:
        tokens = ", ".join(str(each) for each in file.vectors)
        raise UserError(f"--placeholder_token renames one embedding, and the file holds several: {tokens}")
    return dataclasses.replace(file, vectors={token: next(iter(file.vectors.values()))})


def _name(file: EmbeddingFile, source: str) -> EmbeddingFile:
    """Return `file` with the placeholder token that the name of the file stands for, if it has none."""
    if None not in file.vectors:
        return file
    token = names.token_from_name(file_name(source))
    return dataclasses.replace(file, vectors={each or token: vectors for each, vectors in file.vectors.items()})


def _check_flags(command: str, flags: Mapping[str, Any]) -> None:
    """Raise UserError for a flag that is of another command."""
    others = set().union(*_FLAGS.values()) - _FLAGS[command]
    unused = [f"--{name}" for name in sorted(others) if flags[name] not in (None, "", "false")]
    if unused:
        raise UserError(f"{command} does not take {', '.join(unused)}; leave it out")


def _parse_flags() -> dict[str, Any]:
    parser = Parser("Convert, inspect, merge or mix embedding files.", ("source",))
    parser.add_argument("what", choices=("convert", "inspect", "merge", "mix"), help="what to do")
    parser.add_argument(
        "--source",
        "--manager_ckpts",
        type=paths.expand,
        nargs="+",
        help="embedding file of any program, or folder that diffusers wrote",
    )
    suffixes = ", ".join(embedding_io.SUFFIXES)
    parser.add_argument(
        "--target",
        "--output_path",
        type=paths.expand,
        help=f"file to write, ending in {suffixes}; for merge also a folder",
    )
    programs = "; ".join(f"{name}: {format_.program}" for name, format_ in FORMATS.items())
    parser.add_argument(
        "--format",
        choices=tuple(FORMATS),
        help="format to write (default: by the suffix of --target; of merge, one file an embedding). " + programs,
    )
    parser.add_argument(
        "--placeholder_token", nargs="+", help="placeholder token to write, one for each --source (default: the file's)"
    )
    parser.add_argument(
        "--pooling",
        nargs="+",
        choices=POOLING_RULES,
        help="pooling rule of training, one for all --source or one each, for files that do not record it",
    )
    parser.add_argument("--weights", nargs="+", type=float, help="weight of each --source in mix (default: their mean)")
    parser.add_argument(
        "--method",
        choices=tuple(merging.MIX_METHODS),
        help="how mix goes from one embedding to the other: linear adds vectors (default), slerp turns directions and "
        "keeps norms",
    )
    parser.add_path(
        "--weight",
        "weights of the model, single file or diffusers folder, whose tokens inspect compares the vectors with",
    )
    parser.add_overwrite()
    return parser.read(_merge_command(sys.argv[1:]))


def _merge_command(arguments: Sequence[str]) -> list[str]:
    """Return the arguments, with `merge` where they are those of the original `merge_embeddings.py`.

    It writes all embeddings to one file, and has the switch `-sd` for Stable Diffusion.
    """
    if not any(argument.split("=")[0] == "--manager_ckpts" for argument in arguments):
        return list(arguments)
    known = [argument for argument in arguments if argument not in ("-sd", "--stable_diffusion")]
    is_named = known[:1] in (["merge"], ["convert"], ["inspect"], ["mix"])
    return known if is_named else ["merge", *known]


def entry_point() -> None:
    """Run `main` as the console script gm-embedding does."""
    cli.run(main)


if __name__ == "__main__":
    entry_point()
