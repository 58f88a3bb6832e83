"""Interactive session: lines of prompts with options, commands, errors, and Ctrl-C."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gm.embeddings import io as embedding_io
from gm.embeddings.embedding import NO_POOLING, Embedding
from gm.errors import UserError
from gm.sampling import interactive, run
from gm.sampling.interactive import Session
from gm.sampling.pipeline import Pipeline, SamplingProgress
from tests.project import Workshop
from tests.sampling.generation import toy
from tests.training.test_stable_diffusion_runs import config_of


@pytest.fixture
def session(workshop: Workshop, tmp_path: Path) -> Session:
    embedding_io.save(toy(), tmp_path / "toy.ckpt")
    weights = [str(tmp_path / "toy.ckpt")]
    save_path = str(tmp_path / "out")
    return Session(
        workshop.config(sampling={"textual_inversion_weight": weights, "save_path": save_path, "prompt": ""})
    )


def typed(*lines: str | type[BaseException]) -> Callable[[str], str]:
    """Return a `read` that gives these lines, or raises them, and then the end of input."""
    remaining = iter([*lines, EOFError])

    def read(prompt: str) -> str:
        line = next(remaining)
        if isinstance(line, str):
            return line
        raise line

    return read


def show(events: Iterable[SamplingProgress | Path]) -> None:
    for event in events:
        if isinstance(event, Path):
            print(f"wrote {event.name}")


def test_a_line_is_a_prompt_with_options(session: Session) -> None:
    line = '"waterfall in the style of *" --init_img=drawing.png --strength=0.5 -s100 -n4'
    sampling = session.options(line)
    assert sampling.prompt == "waterfall in the style of <toy>"
    assert (sampling.task, sampling.img, sampling.strength) == ("img2img", ["drawing.png"], 0.5)
    assert (sampling.sample_step, sampling.num_cols) == (100, 4)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a <toy>", {"prompt": "a <toy>", "sample_step": 3, "seed": 42}),
        ("a * on a* * -S 7", {"prompt": "a <toy> on a* <toy>", "seed": 7}),
        ("it's a *, 2*3 -n 2", {"prompt": "it's a <toy>, 2*3", "num_cols": 2}),
        (r"a \(toy\)", {"prompt": r"a \(toy\)"}),
        ('"a toy" -W24 -H 16 -C2.5', {"width": 24, "height": 16, "guidance_scale": 2.5}),
        ("a toy -A heun --eta 0.5", {"sampler": "heun", "eta": 0.5}),
        ("a toy -s 5 with a hat", {"prompt": "a toy with a hat", "sample_step": 5}),
        ('a toy --negative_prompt "very blurry"', {"negative_prompt": "very blurry", "prompt": "a toy"}),
        ("a toy -I a.png -M m.png -f 0.3", {"task": "inpaint", "img": ["a.png"], "mask": "m.png", "strength": 0.3}),
        ("a toy --vae_tiling", {"vae_tiling": True}),
        ("a toy # 2 --steps 4", {"prompt": "a toy # 2", "sample_step": 4}),
        ("a toy -o ~/x", {"save_path": str(Path("~/x").expanduser())}),
    ],
)
def test_options_of_lines(session: Session, line: str, expected: dict[str, Any]) -> None:
    sampling = session.options(line)
    assert {name: getattr(sampling, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a toy --step 3", "unknown option --step; did you mean '--steps'?; ! lists the options"),
        ("a toy -s", "expected one argument; ! lists the options"),
        ("a toy -s 0", "sample_step is 0; it must be at least 1"),
        ("a toy -s many", "sample_step: Value 'many'"),
        ('a "toy', "the line has a double quote without its counterpart"),
        ("a toy --textual_inversion_weight x.ckpt", "unknown option --textual_inversion_weight"),
    ],
)
def test_errors_of_lines(session: Session, line: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        session.options(line)
    assert message in str(caught.value)


def test_a_star_is_itself_with_several_embeddings(session: Session) -> None:
    session.tokens = ["<toy>", "<cat>"]
    assert session.options("a *").prompt == "a *"


def test_a_session_generates_its_lines_with_seeds_that_count_on(
    session: Session, pipeline: Pipeline, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[list[int]] = []
    real = run.run_job

    def spy(pipeline: Pipeline, job: Any) -> Any:
        seeds.append([each.seed for each in job.grids[0].requests])
        return real(pipeline, job)

    monkeypatch.setattr(run, "run_job", spy)
    read = typed("a * -n2 -s2", "", "a * -s2", "a * -S 7 -s2", "!!", "!1", "q", "never")
    session.run(pipeline, show, read)
    assert seeds == [[42, 43], [44], [7], [7], [8, 9]]
    out = capsys.readouterr().out
    assert out.startswith(
        "placeholder tokens: <toy>; a line is a prompt with options, ! is help\nwrote image_00000.png"
    )
    assert out.count("wrote grid_") == 5


def test_a_prompt_of_the_command_is_generated_first(
    session: Session, pipeline: Pipeline, workshop: Workshop, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    sampling = {"prompt": "it's a toy", "save_path": str(tmp_path / "first"), "sample_step": 2}
    first = Session(workshop.config(sampling=sampling))
    first.run(pipeline, show, typed())
    assert first.lines == ['"it\'s a toy"']
    assert "wrote image_00000.png" in capsys.readouterr().out


def test_errors_and_ctrl_c_end_a_line_and_not_the_session(
    session: Session, pipeline: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    shown: list[int] = []

    def interrupted_once(events: Iterable[SamplingProgress | Path]) -> None:
        shown.append(1)
        if len(shown) == 1:
            raise KeyboardInterrupt
        show(events)

    lines = ("a * --nope", "a * -s2", KeyboardInterrupt, "a * -s2", "!x", "!99", "!history")
    session.run(pipeline, interrupted_once, typed(*lines))
    out = capsys.readouterr().out
    assert "error: unknown option --nope" in out
    assert "stopped; images that were finished are kept" in out
    assert out.count("wrote image_") == 1
    assert "error: !x is not a command; ! lists them" in out
    assert "error: there are 3 lines; !history lists them" in out
    assert "\n   1 a * --nope\n   2 a * -s2\n   3 a * -s2\n" in out


def test_help_lists_letters_and_options(
    session: Session, pipeline: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    session.run(pipeline, show, typed("!"))
    out = capsys.readouterr().out
    assert "-s sample_step, -n num_cols, -S seed" in out
    assert "--guidance_rescale" in out
    assert "--interactive" not in out


def test_lines_are_kept_for_the_next_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readline = pytest.importorskip("readline")
    readline.clear_history()
    path = tmp_path / "cache" / "history"
    with interactive._history(path, True):
        readline.add_history("a <toy>")
    readline.clear_history()
    with interactive._history(path, True):
        assert readline.get_history_item(1) == "a <toy>"
    readline.clear_history()
    with interactive._history(tmp_path / "other", False):
        pass
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(("family", "encoder"), [("sd1", "clip_l"), ("sd2", "clip_h")])
def test_embeddings_are_those_of_the_models_family(
    workshop: Workshop, tmp_path: Path, family: str, encoder: str
) -> None:
    embedding_io.save(Embedding("<cat>", {encoder: np.ones((1, 16), np.float32)}, NO_POOLING), tmp_path / "cat.ckpt")
    sampling = {"textual_inversion_weight": [str(tmp_path / "cat.ckpt")]}
    config = config_of(workshop, tmp_path, family, sampling=sampling)
    assert Session(config).options("a *").prompt == "a <cat>"
    with pytest.raises(UserError, match="SDXL"):
        Session(workshop.config(sampling=sampling))


def test_samplers_have_dream_pys_names_too(session: Session) -> None:
    assert session.options("a -A k_lms").sampler == "lms"
    assert session.options("a -A heun").sampler == "heun"


def test_the_help_leaves_out_what_the_family_does_not_have(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    no_prompt = {"sampling": {"prompt": ""}}
    stable_diffusion_1 = config_of(workshop, tmp_path, "sd1", **no_prompt)
    for config, has_sizes in ((workshop.config(**no_prompt), True), (stable_diffusion_1, False)):
        Session(config).run(None, show, typed("!"))  # type: ignore[arg-type]
        assert ("--orig_height" in capsys.readouterr().out) is has_sizes
