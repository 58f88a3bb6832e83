"""Interactive session: the model is loaded once, then every line is a prompt with options.

"waterfall in the style of *" --init_img=drawing.png --strength=0.5 -s100 -n4

The letters are those of InvokeAI's `dream.py`, the long names those of our options.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import logging
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from gm.config import Config, SamplingConfig, family_options, schema
from gm.config.coming_from import invokeai
from gm.config.coming_from.original import replace_star
from gm.config.parser import add_flags
from gm.embeddings import io as embedding_io
from gm.errors import UserError, did_you_mean
from gm.sampling import request, run
from gm.sampling.pipeline import Pipeline, SamplingProgress

log = logging.getLogger("gm")

Show = Callable[[Iterable[SamplingProgress | Path]], None]

PROMPT = "prompt> "
_ALIASES = {
    "sample_step": ("-s", "--steps"),
    "num_cols": ("-n", "--iterations"),
    "seed": ("-S",),
    "width": ("-W",),
    "height": ("-H",),
    "guidance_scale": ("-C", "--cfg_scale"),
    "sampler": ("-A", "-m"),
    "img": ("-I", "--init_img"),
    "mask": ("-M", "--init_mask"),
    "strength": ("-f",),
    "save_path": ("-o", "--outdir"),
}
_SESSION_OPTIONS = ("interactive", "prompt", "textual_inversion_weight")  # not of a line
_END = ("q", "quit", "exit", "!q")
_HISTORY_LENGTH = 1000
_HELP = f"""A line is a prompt, in double quotes or not, with options:
  "waterfall in the style of *" --init_img=drawing.png --strength=0.5 -s100 -n4
* stands for the placeholder token if there is one embedding. Seeds count on from line to line; -S gives one.
Each line begins with the options of the command; letters: {", ".join(f"{v[0]} {k}" for k, v in _ALIASES.items())}.
All options: %s
!  this help    !history  the lines so far    !!  the last line again    !3  line 3 again    q or Ctrl-D  end
Ctrl-C stops the image and not the session."""


class _LineParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; ! lists the options")


class Session:
    """Lines of prompts for a pipeline, with the options of `config` as defaults of each line.

    Raises UserError for embedding files that cannot be used.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        paths, family = config.sampling.textual_inversion_weight, config.model.family
        concepts = [each for path in paths for each in embedding_io.load_all(path, family)]
        self.tokens = [concept.placeholder_token for concept in concepts]
        self.seed = config.sampling.seed
        self.lines: list[str] = []
        self.parser = _line_parser()

    def run(self, pipeline: Pipeline, show: Show, read: Callable[[str], str] = input) -> None:
        """Read and generate lines until the end of input; `show` shows the progress and the files of each."""
        print(f"placeholder tokens: {', '.join(self.tokens) or 'none'}; a line is a prompt with options, ! is help")
        first = self.config.sampling.prompt.strip()
        with _history(_history_file(), sys.stdin.isatty()):
            if first:
                self._generate(_quoted(first), pipeline, show)
            while True:
                try:
                    line = read(PROMPT).strip()
                except EOFError:
                    print()
                    return
                except KeyboardInterrupt:  # drops the line, as in a shell
                    print()
                    continue
                if line in _END:
                    return
                if line:
                    self._answer(line, pipeline, show)

    def options(self, line: str) -> SamplingConfig:
        """Return the options of a line; UserError for an unknown option, or a value outside its limits."""
        known, unknown = self.parser.parse_known_intermixed_args(_split(line))
        if unknown:
            flag = unknown[0].split("=")[0]
            names = self.parser._option_string_actions
            raise UserError(f"unknown option {flag}{did_you_mean(flag, names)}; ! lists the options")
        values: dict[str, Any] = vars(known)
        prompt = " ".join(values.pop("words"))
        if len(self.tokens) == 1:
            prompt = replace_star(prompt, self.tokens[0])
        values["prompt"] = prompt
        values.setdefault("seed", self.seed)
        if "sampler" in values:
            values["sampler"] = invokeai.SAMPLERS.get(values["sampler"], values["sampler"])
        if "task" not in values and ("img" in values or "mask" in values):
            values["task"] = "inpaint" if values.get("mask") or self.config.sampling.mask else "img2img"
        base = dataclasses.asdict(self.config.sampling)
        return schema.merge(SamplingConfig, {"the session": base, "the line": values})

    def _answer(self, line: str, pipeline: Pipeline, show: Show) -> None:
        """Execute a line: a command that begins with `!`, or a prompt."""
        if line == "!":
            without = {*_SESSION_OPTIONS, *family_options.inapplicable(self.config.model)}
            names = [f"--{f.name}" for f in dataclasses.fields(SamplingConfig) if f.name not in without]
            print(_HELP % " ".join(names))
            return
        if line == "!history":
            for number, earlier in enumerate(self.lines, 1):
                print(f"{number:4} {earlier}")
            return
        if again := re.fullmatch(r"!(!|\d+)", line):
            number = len(self.lines) if again[1] == "!" else int(again[1])
            if not 1 <= number <= len(self.lines):
                print(f"error: there are {len(self.lines)} lines; !history lists them")
                return
            line = self.lines[number - 1]
            print(line)
        elif line.startswith("!"):
            print(f"error: {line} is not a command; ! lists them")
            return
        self._generate(line, pipeline, show)

    def _generate(self, line: str, pipeline: Pipeline, show: Show) -> None:
        """Generate the images of a line; an error or Ctrl-C ends them, not the session."""
        self.lines.append(line)
        try:
            sampling = self.options(line)
            job = request.prepare(dataclasses.replace(self.config, sampling=sampling), literal=True)
            show(run.run_job(pipeline, job))
            self.seed = sampling.seed + sampling.num_cols * sampling.num_rows
        except UserError as error:
            print(f"error: {error}")
        except KeyboardInterrupt:
            print("stopped; images that were finished are kept")


def _quoted(prompt: str) -> str:
    """Return a prompt as a line of its own."""
    return f'"{prompt}"' if '"' not in prompt else prompt


def _split(line: str) -> list[str]:
    """Return the words of a line; double quotes hold words together, and an apostrophe or backslash is itself."""
    words = shlex.shlex(line, posix=True)
    words.quotes = '"'
    words.escape = ""
    words.commenters = ""
    words.whitespace_split = True
    try:
        return list(words)
    except ValueError as error:
        raise UserError('the line has a double quote without its counterpart; close it, or leave out the "') from error


def _line_parser() -> _LineParser:
    parser = _LineParser(add_help=False, allow_abbrev=False)
    add_flags(parser, "sampling", {}, without=_SESSION_OPTIONS)
    for name, flags in _ALIASES.items():
        parser.add_argument(*flags, dest=name, default=argparse.SUPPRESS)
    parser.add_argument("words", nargs="*")
    return parser


def _history_file() -> Path:
    user_cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return user_cache / "sdxl-textual-inversion" / "history"


@contextlib.contextmanager
def _history(path: Path, is_terminal: bool) -> Iterator[None]:
    """Edit lines in the block with the arrow keys, and keep them for the next session, on a terminal."""
    readline = _readline() if is_terminal else None
    if readline is None:
        yield
        return
    with contextlib.suppress(OSError):
        readline.read_history_file(path)
    readline.set_history_length(_HISTORY_LENGTH)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(path)


def _readline() -> ModuleType | None:
    try:
        import readline
    except ImportError:  # not on Windows
        return None
    return readline
