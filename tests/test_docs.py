"""The docs are true: their commands parse, their Python runs, their links and options exist."""

from __future__ import annotations

import functools
import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gm.config import cli
from gm.sampling import image_files
from gm.sampling.prompt_file import LETTERS
from tests.project import Workshop
from tools.convert_weights import convert

ROOT = Path(__file__).resolve().parents[1]
DOCS = [ROOT / "README.md", ROOT / "checkpoints" / "README.md", ROOT / "datasets" / "README.md"]
DOCS += [ROOT / "checkpoints" / "tiny_sd_xl_base.md", *sorted((ROOT / "docs").glob("*.md"))]
TRAINING, SAMPLING = ("run", "concept", "data", "training", "loss"), ("run", "sampling")
OTHER_FLAGS = {
    "--help",
    "--server.port",
    "--runs",
    "--outputs",
    "--allow-run-as-root",
    "--signal",
    "--max_train_steps",
    "--logdir",
}
OTHER_FLAGS |= {f"--{letter}" for letter in LETTERS}
LAUNCHER = r"(mpirun -n \d+ (--bind-to core )?python |msrun (--\w+=\S+ +)*|python )"


def blocks(doc: Path, language: str) -> list[str]:
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", doc.read_text(), re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """Return every line of every bash block, continued lines joined."""
    text = "\n".join(block for doc in DOCS for block in blocks(doc, "bash")).replace("\\\n", " ")
    return [line.strip() for line in text.splitlines() if line.strip()]


def known_flags() -> set[str]:
    parser = cli.Parser("all")
    owner: dict[str, str] = {}
    for section in dict.fromkeys((*TRAINING, *SAMPLING)):
        if section != "sampling":
            cli._add_flags(parser, section, owner)
    sampling = cli.Parser("sampling")
    cli._add_flags(sampling, "sampling", owner)
    flags = {*parser._option_string_actions, *sampling._option_string_actions}
    flags |= {"--config", "--recipe", "--source", "--target", "--dtype", "--overwrite", "--format", "--weights"}
    return flags | help_of(sys.executable, str(ROOT / "tools" / "publish.py"))


@pytest.mark.parametrize("line", commands())
def test_every_command_parses(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if re.match(r"(make (demo|test|install)|pip install -r requirement.txt)( |$)", line):
        target = shlex.split(line, comments=True)[-1]
        assert (ROOT / target).exists() or f"\n{target}:" in (ROOT / "Makefile").read_text()
        return
    if line.startswith("streamlit run "):
        script, *arguments = shlex.split(line.replace("<your_port>", "8501"))[2:]
        flags = {a for a in arguments if a.startswith("--") and a != "--"}
        assert flags <= {"--server.port"} | help_of(sys.executable, str(ROOT / script))
        return
    start = re.match(LAUNCHER, line)
    assert start, line
    if line.startswith("msrun"):
        taken = help_of(str(Path(sys.executable).with_name("msrun")))
        assert set(re.findall(r"--\w+", start[0])) <= taken
    script, *arguments = shlex.split(line[start.end() :], comments=True)
    if script == "train_textual_inversion.py":
        cli.parse("", TRAINING, [a for a in arguments if a != "--help"])
    elif script == "demo/sampling_without_streamlit.py":
        cli.parse("", SAMPLING, arguments, lambda image: {})
    elif script == "tools/convert_weights/convert.py":
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        convert._flags()
    else:
        assert {a.split("=")[0] for a in arguments if a.startswith("--")} <= help_of(sys.executable, str(ROOT / script))


@functools.cache
def help_of(*command: str) -> set[str]:
    """Return the flags that a program's help names."""
    shown = subprocess.run([*command, "--help"], capture_output=True, text=True, cwd=ROOT, check=True)
    return set(re.findall(r"--\w+", shown.stdout))


def test_the_readmes_way_from_weights_to_images_runs(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks behind `<!-- runs -->` run as they stand; flags added at the end put the smallest model in."""
    text = (ROOT / "README.md").read_text().replace("\\\n", " ")
    marked = re.findall(r"<!-- runs -->\n```bash\n(.*?)```", text, re.DOTALL)
    lines = [line.strip() for block in marked for line in block.splitlines() if line.startswith("python ")]
    converted, learned = str(tmp_path / "model.ckpt"), str(tmp_path / "run" / "smallest_2_ti.ckpt")
    shared = ("--config", str(workshop.yaml))
    used = (*shared, "--weight", converted, "--device_target", "CPU", "--save_path")
    own = {
        "tools/convert_weights/convert.py": (*shared, "--source", str(workshop.folder / "weights.ckpt")),
        "train_textual_inversion.py": (*used, str(tmp_path / "run"), "--data_path", str(workshop.folder / "images")),
        "demo/sampling_without_streamlit.py": (*used, str(tmp_path / "out"), "--textual_inversion_weight", learned),
    }
    own["tools/convert_weights/convert.py"] += ("--target", converted, "--dtype", "float32")
    own["train_textual_inversion.py"] += ("--total_step", "2")
    scripts = []
    for line in lines:
        script, *arguments = shlex.split(line.removeprefix("python "))
        scripts.append(script)
        monkeypatch.setattr(sys, "argv", [script, *arguments, *own[script]])
        importlib.import_module(script.removesuffix(".py").replace("/", ".")).main()
    assert scripts == list(own)
    assert len(list((tmp_path / "out").glob("image_*.png"))) == 4


def test_no_block_escapes_these_tests() -> None:
    for doc in DOCS:
        fences = re.findall(r"^ *```(.*)$", doc.read_text(), re.MULTILINE)
        assert set(fences[::2]) <= {"bash", "python", "text"}, doc
    assert {doc.name for doc in DOCS if blocks(doc, "python")} == {"README.md", "sampling.md", "training.md"}


def test_the_customers_commands_are_there() -> None:
    lines = [re.sub(r" +", " ", line) for line in commands()]
    assert (
        "python train_textual_inversion.py --data_path datasets/chinese_art --save_path runs/chinese_art "
        "--infer_during_train True --gradient_accumulation_steps 4 --num_vectors 2 --total_step 2000 "
        '--placeholder_token "<chinese-art>" --learnable_property "style"'
    ) in lines
    assert any(line.startswith("python demo/sampling_without_streamlit.py --task txt2img --config") for line in lines)


@pytest.mark.parametrize("doc", DOCS, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_and_options_exist_and_no_machine_is_named(doc: Path) -> None:
    text = doc.read_text()
    for target in re.findall(r"\]\(([^)]+)\)", text):
        assert target.startswith("https://") or (doc.parent / target.split("#")[0]).exists(), target
    outside_bash = re.sub(r"```bash\n.*?```", "", text, flags=re.DOTALL)
    unknown = set(re.findall(r"--[a-z][\w.-]+", outside_bash)) - known_flags() - OTHER_FLAGS
    assert unknown == set()
    assert not re.search(r"(?<![\w.])/(work|tmp|root|home)\b", text)


def test_the_python_in_the_readme_runs(workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = blocks(ROOT / "README.md", "python")
    for ours, theirs in (
        ("configs/training/tiny_textual_inversion.yaml", str(workshop.yaml)),
        ("datasets/humbug", str(workshop.folder / "images")),
        ('"total_step": 200', '"total_step": 2'),
    ):
        assert block.count(ours) == 1
        block = block.replace(ours, theirs)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(block, names)
    assert names["images"][0].shape == (16, 16, 3)
    assert (tmp_path / "humbug_ti.ckpt").is_file()


def test_the_python_in_the_sampling_guide_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "outputs").mkdir()
    image_files.save(np.zeros((4, 4, 3), np.uint8), {"prompt": "a toy"}, tmp_path / "outputs", "image")
    monkeypatch.chdir(tmp_path)
    (block,) = blocks(ROOT / "docs" / "sampling.md", "python")
    exec(block, {})
    assert capsys.readouterr().out == "a toy\n"
