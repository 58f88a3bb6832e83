"""The two scripts as a person runs them: the whole way once, and every kind of bad input."""

from __future__ import annotations

import importlib
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gm.checkpoints import containers
from gm.checkpoints.lazy_tensor import in_memory
from gm.config import cli
from gm.runtime import onednn
from tests.project import ALL_CORES, MPIRUN, Call, Workshop

ROOT = Path(__file__).resolve().parents[1]
Run = Callable[..., str]


@pytest.fixture
def script(workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Run:
    """Return the function that runs a script in this process, which must fail, and returns its one line."""

    def run(name: str, *arguments: str) -> str:
        save_path = tmp_path / "out"
        monkeypatch.setattr(
            sys, "argv", [name, "--config", str(workshop.yaml), "--save_path", str(save_path), *arguments]
        )
        main = importlib.import_module(name).main
        with pytest.raises(SystemExit) as caught:
            cli.run(main)
        assert caught.value.code == 2
        assert not save_path.exists()
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        return error

    return run


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Return a folder with one good image, one broken one and one text file."""
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (20, 20), "red").save(folder / "good.png")
    (folder / "broken.png").write_bytes((folder / "good.png").read_bytes()[:40])
    (folder / "notes.txt").write_text("hello")
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data_path", "@nowhere"], "nowhere"),
        (["--data_path", ""], "data_path"),
        (["--data_path", "@empty"], "no image in"),
        (["--data_path", "@images"], "broken.png"),
        (["--num_vector", "2"], "unknown argument --num_vector; did you mean '--num_vectors'?"),
        (["--num_vectors", "0"], "concept.num_vectors is 0; it must be at least 1"),
        (["--num_vectors", "76"], "with 76 vectors fits in no prompt; give it at most 75"),
        (["--total_step", "many"], "training.total_step: Value 'many'"),
        (["--placeholder_token", "cat"], "'cat' is"),
        (["--placeholder_token", "two words"], "two words"),
        (["--save_path", "@bad.txt/run"], "bad.txt is not a folder; choose another"),
        (["--initializer_token", " "], "has no tokens; give a word, or leave it out"),
        (["--infer_prompt", "two", "--placeholder_token", "mytoy"], "holds neither {} nor mytoy; add one"),
        (["--infer_prompt", "mytoys", "--placeholder_token", "mytoy"], "holds neither {} nor mytoy; add one"),
        (["--infer_prompt", "a photo"], "holds neither {} nor <toy>; add one"),
        (["--template_file", "@nowhere.txt"], "nowhere.txt"),
        (["--template_file", "@bad.txt"], "bad.txt"),
        (["--learnable_property", "thing"], "it may be 'object', 'style', 'face'"),
        (["--resolution", "20"], "data.resolution is 20; it must be a multiple of 8"),
        (["--weight", "@nowhere.ckpt"], "no weights "),
        (["--weight", "@other.safetensors"], "does not fit the model"),
        (["--weight", "@bad.txt"], "bad.txt"),
        (["--device_target", "Ascend"], "no Ascend card on this machine"),
        (["--device_target", "GPU"], "it may be 'Ascend', 'CPU'"),
        (["--max_timestep", "1000"], "--max_timestep 1000 leave no timestep; the model has 0 to 999"),
        (["--min_timestep", "500", "--max_timestep", "400"], "--min_timestep 500 and --max_timestep 400 leave no"),
        (["--resume", "@nowhere.ckpt"], "is not a file"),
        (["--is_parallel", "True"], "needs several processes"),
        (["--concepts", "{placeholder_token: <aa>}", "{placeholder: <bb>}"], "--concepts, concept 2: unknown option"),
        (["--concepts", "words.yaml"], "words.yaml is not a file"),
    ],
)
def test_training_names_mistakes(script: Run, images: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.txt").write_text("a photo without a place for the word\n")
    containers.write(tmp_path / "other.safetensors", {"some.weight": in_memory(np.zeros(3, np.float32))})
    placed = [a.replace("@", f"{tmp_path}/") for a in arguments]
    assert message in script("train_textual_inversion", *placed)


def test_several_concepts_are_trained_and_generated_together(workshop: Workshop, tmp_path: Path, call: Call) -> None:
    images = workshop.folder / "images"
    code, said, error = call(
        ROOT / "train_textual_inversion.py",
        *("--config", workshop.yaml, "--total_step", "2", "--save_path", tmp_path / "run"),
        *("--initializer_token", "cat", "--concepts"),
        f"{{placeholder_token: <aa>, data_path: {images}, num_vectors: 3}}",
        f"{{placeholder_token: <bb>, data_path: {images}}}",
        "{placeholder_token: <not>, negative: true}",
    )
    assert (code, error) == (0, "")
    trained = [tmp_path / "run" / f"smallest_{name}_2_ti.ckpt" for name in ("aa", "bb", "not")]
    for token, path in zip(("<aa>", "<bb>", "<not>"), trained, strict=True):
        assert f"trained {token}: {path}" in said
    code, _, _ = call(
        ROOT / "demo" / "sampling_without_streamlit.py",
        *("--config", workshop.yaml, "--save_path", tmp_path / "out"),
        *("--prompt", "a <aa> beside a <bb>", "--negative_prompt", "<not>"),
        *("--textual_inversion_weight", *trained),
    )
    assert code == 0
    assert len(list((tmp_path / "out").glob("image_*.png"))) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompts", "a cat"], "unknown argument --prompts; did you mean '--prompt'?"),
        (["--task", "img2imgs"], "it may be 'txt2img', 'img2img', 'inpaint'; did you mean 'img2img'?"),
        (["--task", "img2img"], "--img is empty"),
        (["--parameters_from", "@wide.ckpt"], "is not a readable image"),
        (["--save_path", "@wide.ckpt/out"], "wide.ckpt is not a folder; choose another"),
        (["--prompt", "promts.txt"], "promts.txt is not a file; --prompt takes a prompt, or a text file"),
        (["--sampler", "dpm"], "unknown sampler 'dpm'; known are euler"),
        (["--height", "21"], "--height is 21; it must be a multiple of 2"),
        (["--textual_inversion_weight", "@wide.ckpt"], "vectors of 768 and 1280 values, the model's have 16 and 24"),
        (["--textual_inversion_weight", "@nowhere.ckpt"], "is not a file"),
        (["--weight", "@nowhere.ckpt"], "no weights "),
        (["--num_cols", "0"], "sampling.num_cols is 0; it must be at least 1"),
        (["--guidance_scale", "-1"], "sampling.guidance_scale is -1.0; it must be at least 0.0"),
    ],
)
def test_sampling_refuses_bad_options(script: Run, tmp_path: Path, arguments: list[str], message: str) -> None:
    from gm.embeddings import io as embedding_io
    from gm.embeddings.embedding import Embedding

    wide = Embedding("<wide>", {"clip_l": np.zeros((1, 768), np.float32), "clip_g": np.zeros((1, 1280), np.float32)})
    embedding_io.save(wide, tmp_path / "wide.ckpt")
    placed = [a.replace("@", f"{tmp_path}/") for a in arguments]
    assert message in script("demo.sampling_without_streamlit", *placed)


def command(
    *arguments: str, launcher: tuple[str, ...] = (sys.executable,), **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*launcher, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1800,  # ranks on a busy machine may need minutes to find each other: MindSpore repeats after one
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **environment},
        check=False,
    )


@pytest.mark.e2e
def test_given_commands_train_and_sample(workshop: Workshop, tmp_path: Path) -> None:
    """Train and sample by the given commands, in graph mode, with the variables of the customer's shell."""
    shell = {"MS_PYNATIVE_GE": "1", "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python"}
    own = ("--config", str(workshop.yaml), "--weight", str(workshop.folder / "weights.ckpt"), "--ms_mode", "0")
    trained = command(
        *("train_textual_inversion.py", *own, "--data_path", str(workshop.folder / "images")),
        *("--save_path", str(tmp_path / "run"), "--infer_during_train", "True", "--total_step", "6"),
        *("--gradient_accumulation_steps", "4", "--num_vectors", "10", "--placeholder_token", "<cat-toy>"),
        *("--learnable_property", "object"),
        **shell,
    )
    assert trained.returncode == 0, trained.stderr
    assert "compiling the training graph" in trained.stdout
    assert "step 6/6  update 2/2" in trained.stdout
    learned = tmp_path / "run" / "smallest_6_ti.ckpt"
    assert f"trained <cat-toy>: {learned}" in trained.stdout
    sampled = command(
        *("demo/sampling_without_streamlit.py", "--task", "txt2img", *own, "--textual_inversion_weight", str(learned)),
        *("--prompt", "a <cat-toy> backpack", "--device_target", "CPU", "--num_cols", "4"),
        *("--save_path", str(tmp_path / "out")),
        **shell,
    )
    assert sampled.returncode == 0, sampled.stderr
    assert len(list((tmp_path / "out").glob("image_*.png"))) == 4
    assert Image.open(tmp_path / "out" / "grid_00000.png").size == (64, 16)


@pytest.mark.e2e
def test_mistake_ends_the_process_with_code_2_and_one_line() -> None:
    ended = command("train_textual_inversion.py", "--data_pth", "x")
    assert ended.returncode == 2
    assert ended.stderr == "error: unknown argument --data_pth; did you mean '--data_path'?\n"
    assert ended.stdout == ""


@pytest.mark.e2e
def test_two_processes_train_as_one_with_twice_the_batch(workshop: Workshop, tmp_path: Path) -> None:
    from gm.embeddings import io as embedding_io

    own = ("train_textual_inversion.py", "--config", str(workshop.yaml), "--total_step", "4")
    own += ("--gradient_accumulation_steps", "2", "--save_path")
    one = command(*own, str(tmp_path / "one"), "--train_batch_size", "2")
    assert one.returncode == 0, one.stderr
    alone = embedding_io.load(tmp_path / "one" / "smallest_4_ti.ckpt")
    mpirun = (*MPIRUN, sys.executable)
    with socket.socket() as free:  # the default port may be that of another test run on this machine
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    msrun = (*ALL_CORES, "msrun", "--worker_num=2", "--local_worker_num=2", "--join=True")
    msrun = (*msrun, f"--master_port={port}", f"--log_dir={tmp_path / 'logs'}")
    for launcher in (mpirun, msrun):
        folder = tmp_path / ("mpirun" if launcher is mpirun else "msrun")
        ended = command(*own, str(folder), "--is_parallel", "True", launcher=launcher)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        together = embedding_io.load(folder / "smallest_4_ti.ckpt")
        for left, right in (
            (alone.vectors["clip_l"], together.vectors["clip_l"]),
            (alone.vectors["clip_g"], together.vectors["clip_g"]),
        ):
            assert np.linalg.norm(left - right) / np.linalg.norm(left) < 1e-5
        assert (folder / "log.jsonl").read_text().count('"loss"') == 4  # one rank writes


@pytest.mark.e2e
def test_ranks_read_cached_graphs(workshop: Workshop, tmp_path: Path) -> None:
    from gm.embeddings import io as embedding_io

    learned, kept = [], []
    (tmp_path / "graphs").mkdir()
    if library := onednn.library():
        shutil.copy2(library, tmp_path / "graphs")  # of two ranks at once, compiling it takes longer than the test
    for name in ("compiled", "read"):
        ended = command(
            *("train_textual_inversion.py", "--config", str(workshop.yaml), "--ms_mode", "0", "--is_parallel", "True"),
            *("--total_step", "2", "--save_path", str(tmp_path / name)),
            launcher=(*MPIRUN, sys.executable),
            GM_GRAPHS=str(tmp_path / "graphs"),
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        learned.append(embedding_io.load(tmp_path / name / "smallest_2_ti.ckpt"))
        kept.append({path.name: path.stat().st_ino for path in (tmp_path / "graphs").glob("*.mindir")})
    assert len(kept[0]) >= 2  # the step and the update, at least
    assert kept[0] == kept[1]  # nothing was compiled, so nothing was written
    assert np.array_equal(learned[0].vectors["clip_l"], learned[1].vectors["clip_l"])
    assert np.array_equal(learned[0].vectors["clip_g"], learned[1].vectors["clip_g"])
