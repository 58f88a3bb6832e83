"""Docs: commands parse and run, Python runs, links and options exist, images are small enough."""

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
from PIL import Image

from gm.config import cli, coming_from, hub_models
from gm.sampling import image_files
from gm.sampling.prompt_file import LETTERS
from tests.project import Workshop
from tools.convert_weights import convert

ROOT = Path(__file__).resolve().parents[1]
DOCS = [ROOT / "README.md", ROOT / "README_CN.md", ROOT / "checkpoints" / "README.md", ROOT / "datasets" / "README.md"]
DOCS += [ROOT / "checkpoints" / "tiny_sd_xl_base.md", *sorted((ROOT / "docs").glob("*.md"))]
DOCS += sorted((ROOT / "examples").glob("**/README.md"))
TRAINING, SAMPLING = ("run", "concept", "data", "training", "loss"), ("run", "sampling")
OTHER_FLAGS = {
    "--help",
    "--server.port",
    "--runs",
    "--outputs",
    "--checkpoints",
    "--allow-run-as-root",
    "--signal",
    "--max_train_steps",
    "--logdir",
    "--cache_latents",  # kohya's
    "--install",  # of CANN's packages
    "--local-dir",  # of hf download
}
OTHER_FLAGS |= {f"--{letter}" for letter in LETTERS}
LAUNCHER = r"(mpirun -n \d+ (--bind-to core )?python |msrun (--\w+=\S+ +)*|python )"
# Commands of an Ascend machine, none of which can be tried here.
ON_A_CARD = "|".join(
    (
        r"npu-smi info",
        r"hccn_tool -i 0 -(ip|link) -g",
        r"source /usr/local/Ascend/cann/set_env\.sh",
        r"cat (/usr/local/Ascend|\$ASCEND_HOME_PATH)/\w+/version\.info",
        r"export (HCCL|GLOG|ASCEND)_\w+=\S+",
        r"uname -a|python --version|pip list|env \| grep -E \S+|git log -1 --oneline",
        r"pip install mindspore==2\.8\.0",
        r"tail -f runs/logs/worker_0\.log|tar czf failure\.tar\.gz( runs/\S+)+",
    )
)


def blocks(doc: Path, language: str) -> list[str]:
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", doc.read_text(), re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """Return every line of every bash block once, continued lines joined."""
    text = "\n".join(block for doc in DOCS for block in blocks(doc, "bash")).replace("\\\n", " ")
    return list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))


SCRIPTS = (
    "train_textual_inversion.py",
    "demo/sampling_without_streamlit.py",
    "tools/convert_weights/convert.py",
    "tools/convert_weights/embedding.py",
    "tools/evaluate.py",
    "tools/push_to_hub.py",
)


def flags_of_other_programs() -> set[str]:
    programs = (*coming_from.TRAINING, *coming_from.SAMPLING)
    return {f"--{name}" for program in programs for name in program.flags}


def known_flags() -> set[str]:
    return {flag for script in SCRIPTS for flag in help_of(sys.executable, str(ROOT / script))}


@pytest.mark.parametrize("line", commands())
def test_every_command_parses(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if line.startswith("curl "):
        assert re.fullmatch(r"curl -L -o checkpoints/(\S+) +https://huggingface\.co/stabilityai/\S+/\1", line)
        return
    if re.fullmatch(ON_A_CARD, line):
        return
    if extra := re.fullmatch(r'pip install -e "\.\[(\w+)\]"', line):
        assert re.search(rf"^{extra[1]} = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
        return
    if code := re.fullmatch(r'python -c "(.*)"', line):
        compile(code[1], line, "exec")
        return
    if re.match(r"(make (demo|test|install|ascend-dryrun)|pip install -r requirement.txt)( |$)", line):
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
    monkeypatch.setattr(hub_models, "locate", lambda run: run.weight)  # nothing is fetched
    script, *arguments = shlex.split(re.sub(r" > \S+ 2>&1$", "", line[start.end() :]), comments=True)
    if script == "train_textual_inversion.py":
        cli.parse("", TRAINING, [a for a in arguments if a != "--help"], programs=coming_from.TRAINING)
    elif script == "demo/sampling_without_streamlit.py":
        cli.parse("", SAMPLING, arguments, lambda image: {}, programs=coming_from.SAMPLING)
    elif script == "tools/convert_weights/convert.py":
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        convert._parse_flags()
    else:
        assert {a.split("=")[0] for a in arguments if a.startswith("--")} <= help_of(sys.executable, str(ROOT / script))


@functools.cache
def help_of(*command: str) -> set[str]:
    """Return the flags that a program's help lists; each begins a line, before its explanation."""
    result = subprocess.run([*command, "--help"], capture_output=True, text=True, cwd=ROOT, check=True)
    listed = re.findall(r"^  (?:-\w, )?(--\S.*?)(?:  |$)", result.stdout, re.MULTILINE)
    return {flag for line in listed for flag in re.findall(r"--[\w.]+", line)}


def test_readme_commands_from_weights_to_images_run(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks behind `<!-- runs -->` run as they stand; flags added at the end put the smallest model in."""
    text = (ROOT / "README.md").read_text().replace("\\\n", " ")
    marked = re.findall(r"<!-- runs -->\n```bash\n(.*?)```", text, re.DOTALL)
    lines = [line.strip() for block in marked for line in block.splitlines() if line.startswith("python ")]
    converted = str(tmp_path / "model.ckpt")
    embedding = str(tmp_path / "run" / "smallest_2_ti.ckpt")
    config = ["--config", str(workshop.yaml)]
    model = [*config, "--weight", converted, "--device_target", "CPU"]
    source = ["--source", str(workshop.folder / "weights.ckpt"), "--target", converted, "--dtype", "float32"]
    images = ["--data_path", str(workshop.folder / "images"), "--total_step", "2"]
    used = ["--textual_inversion_weight", embedding]
    added = {
        "tools/convert_weights/convert.py": [*config, *source],
        "train_textual_inversion.py": [*model, "--save_path", str(tmp_path / "run"), *images],
        "demo/sampling_without_streamlit.py": [*model, "--save_path", str(tmp_path / "out"), *used],
    }
    scripts = []
    for line in lines:
        script, *arguments = shlex.split(line.removeprefix("python "))
        scripts.append(script)
        monkeypatch.setattr(sys, "argv", [script, *arguments, *added[script]])
        importlib.import_module(script.removesuffix(".py").replace("/", ".")).main()
    assert scripts == list(added)
    assert len(list((tmp_path / "out").glob("image_*.png"))) == 4


def test_every_flag_of_diffusers_scripts_is_in_its_table() -> None:
    page = (ROOT / "docs" / "coming_from.md").read_text()
    table = page[page.index("## diffusers") : page.index("## kohya")]
    listed = {flag for line in table.splitlines() if line.startswith("|") for flag in re.findall(r"--(\w+)", line)}
    assert set(coming_from.diffusers.FLAGS) <= listed


def test_every_code_block_is_covered_by_a_test() -> None:
    for doc in DOCS:
        fences = re.findall(r"^ *```(.*)$", doc.read_text(), re.MULTILINE)
        assert set(fences[::2]) <= {"bash", "python", "text", "mermaid"}, doc
    with_python = {doc.name for doc in DOCS if blocks(doc, "python")}
    # training.md's is run in tests/training, README_CN.md's equals README.md's
    assert with_python - {"training.md", "README_CN.md"} == {"README.md", "sampling.md"}


def test_the_agreed_commands_are_in_the_docs() -> None:
    lines = [re.sub(r" +", " ", line) for line in commands()]
    assert (
        "python train_textual_inversion.py --data_path datasets/chinese_art --save_path runs/chinese_art "
        "--infer_during_train True --gradient_accumulation_steps 4 --num_vectors 2 --total_step 2000 "
        '--placeholder_token "<chinese-art>" --learnable_property "style"'
    ) in lines
    assert any(line.startswith("python demo/sampling_without_streamlit.py --task txt2img --config") for line in lines)


def anchors(doc: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", doc.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_image_on_the_first_screen_is_a_strip() -> None:
    first = (ROOT / "README.md").read_text().split("\n## ")[0]
    (image,) = re.findall(r"\]\((docs/images/\S+)\)", first)
    assert Image.open(ROOT / image).height <= 400
    assert "https://arxiv.org/abs/2208.01618" in first


@pytest.mark.parametrize("doc", DOCS, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_and_options_exist_and_no_local_path_is_named(doc: Path) -> None:
    text = doc.read_text()
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        file = doc.parent / name if name else doc
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target
    outside_bash = re.sub(r"```bash\n.*?```", "", text, flags=re.DOTALL)
    known = known_flags() | help_of(str(Path(sys.executable).with_name("msrun")))
    if doc.name == "coming_from.md":
        known |= flags_of_other_programs() | {"--num_processes", "--trigger_term", "--init_img", "--key"}
    unknown = set(re.findall(r"--[a-z][\w.-]+", outside_bash)) - known - OTHER_FLAGS
    assert unknown == set()
    folders = "gm|demo|tools|examples|benchmarks|configs|docs|tests"
    current = "\n".join(line for line in text.splitlines() if " commit " not in line)  # of a commit: files of the past
    assert [name for name in re.findall(rf"`((?:{folders})/[\w./-]*)`", current) if not (ROOT / name).exists()] == []
    assert not re.search(r"(?<![\w.])/(work|tmp|root|home)\b", text)


def test_readme_python_runs(workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = blocks(ROOT / "README.md", "python")
    for written, replacement in (
        ("configs/training/tiny_textual_inversion.yaml", str(workshop.yaml)),
        ("datasets/humbug", str(workshop.folder / "images")),
        ('"total_step": 100', '"total_step": 2'),
    ):
        assert block.count(written) == 1
        block = block.replace(written, replacement)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(block, names)
    assert names["images"][0].shape == (16, 16, 3)
    assert (tmp_path / "humbug_ti.ckpt").is_file()


def test_sampling_guide_python_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "outputs").mkdir()
    image_files.save(np.zeros((4, 4, 3), np.uint8), {"prompt": "a toy"}, tmp_path / "outputs", "image")
    monkeypatch.chdir(tmp_path)
    (block,) = blocks(ROOT / "docs" / "sampling.md", "python")
    exec(block, {})
    assert capsys.readouterr().out == "a toy\n"


@pytest.mark.parametrize("page", ["ascend.md", "ascend_CN.md"])
def test_ascend_guide_names_the_packages_of_the_extra(page: str) -> None:
    (extra,) = re.findall(r"^ascend = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL)
    packages = re.findall(r'^    "([\w-]+)', extra, re.MULTILINE)
    text = (ROOT / "docs" / page).read_text()
    assert packages
    assert [package for package in packages if package not in text] == []
