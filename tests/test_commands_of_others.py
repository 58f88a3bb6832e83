"""Commands of other programs' guides, run as a whole: on a tiny diffusers folder, with what they write."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from gm import config as configuration
from gm.config import Config
from gm.embeddings import io as embedding_io
from gm.errors import UserError
from gm.training import checkpoint
from tests.checkpoints.diffusers_folders import save_diffusers_folder
from tests.project import Call
from tests.reference.case import Case

ROOT = Path(__file__).resolve().parents[1]
Train = Callable[..., tuple[int, str, str]]
GUIDE = (
    '--pretrained_model_name_or_path=model --train_data_dir=cat --learnable_property="object" '
    '--placeholder_token="<cat-toy>" --initializer_token="toy" --resolution=16 --train_batch_size=1 '
    "--gradient_accumulation_steps=2 --max_train_steps=%d --learning_rate=5.0e-04 --scale_lr "
    '--lr_scheduler="constant" --lr_warmup_steps=0 --output_dir="out" --config config.yaml --ms_mode 1'
)


@pytest.fixture
def train(smallest: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call) -> Train:
    """Return the function that trains, in a folder with the model `model` and the images `cat`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GM_GRAPHS", str(tmp_path / "graphs"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    save_diffusers_folder(smallest, tmp_path / "model")
    configuration.save(Config(model=smallest.config), tmp_path / "config.yaml")
    (tmp_path / "cat").mkdir()
    for number in range(2):
        noise = np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "cat" / f"{number}.png")
    return lambda command: call(ROOT / "train_textual_inversion.py", *shlex.split(command))


def vectors(path: Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(path)


@pytest.mark.e2e
def test_the_command_of_diffusers_guide_writes_what_it_writes_there(train: Train, tmp_path: Path) -> None:
    command = GUIDE % 4 + ' --save_steps=2 --checkpointing_steps=2 --num_vectors=2 --validation_prompt="A <cat-toy>"'
    code, out, error = train(command + " --num_validation_images=2 --validation_steps=4")
    assert code == 0, error
    assert "  --max_train_steps 4 → --total_step 8\n" in out
    assert "converting model into " in out
    folder = tmp_path / "out"
    names = {"learned_embeds", "learned_embeds_2"}
    names |= {f"{stem}-steps-{updates}" for stem in names for updates in (2, 4)}
    assert {path.stem for path in folder.glob("learned_embeds*.safetensors")} == names
    assert {path.name for path in folder.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}
    assert (folder / "token_identifier.txt").read_text() == "<cat-toy>"
    assert (folder / "type_of_concept.txt").read_text() == "object"
    last = vectors(folder / "learned_embeds.safetensors")
    assert {token: array.shape for token, array in last.items()} == {"<cat-toy>": (2, 48)}
    np.testing.assert_array_equal(
        last["<cat-toy>"], vectors(folder / "learned_embeds-steps-4.safetensors")["<cat-toy>"]
    )
    assert (last["<cat-toy>"] != vectors(folder / "learned_embeds-steps-2.safetensors")["<cat-toy>"]).any()
    ours = embedding_io.load(folder / f"{configuration.load('config.yaml').model.version}_8_ti.safetensors")
    np.testing.assert_array_equal(ours.vectors["clip_l"], last["<cat-toy>"])
    second = vectors(folder / "learned_embeds_2.safetensors")["<cat-toy>"]
    np.testing.assert_array_equal(second, ours.vectors["clip_g"])
    with Image.open(folder / "previews" / "step_8.png") as image:
        assert image.width == 2 * image.height  # two validation images
    assert (folder / "config.yaml").is_file()


@pytest.mark.e2e
def test_its_checkpoints_resume_bit_for_bit(train: Train, tmp_path: Path) -> None:
    def files() -> set[str]:
        return {path.name for path in (tmp_path / "out").iterdir()}

    command = GUIDE + " --save_steps=1 --checkpointing_steps=1"
    assert train(command % 3)[0] == 0
    whole = vectors(tmp_path / "out" / "learned_embeds.safetensors")["<cat-toy>"]
    assert {f"checkpoint-{k}" for k in (1, 2, 3)} <= files()
    code, out, error = train(command % 3 + " --resume_from_checkpoint=checkpoint-1")
    assert code == 0, error
    assert "  --resume_from_checkpoint checkpoint-1 → --resume out/checkpoint-1\n" in out
    assert "the converted weights are in" in out
    resumed = vectors(tmp_path / "out" / "learned_embeds.safetensors")["<cat-toy>"]
    np.testing.assert_array_equal(resumed, whole)
    # What the first run wrote after the checkpoint is kept aside.
    earlier = {path.name for path in (tmp_path / "out" / "earlier_1").iterdir()}
    assert {"checkpoint-2", "checkpoint-3", "learned_embeds-steps-2.safetensors"} <= earlier
    assert not {"checkpoint-1", "learned_embeds-steps-1.safetensors"} & earlier
    # A run from the start moves everything aside.
    code, out, error = train(command % 1 + " --checkpoints_total_limit=1 --no_safe_serialization")
    assert code == 0, error
    earlier = {path.name for path in (tmp_path / "out" / "earlier_2").iterdir()}
    assert {"checkpoint-1", "checkpoint-3", "learned_embeds.safetensors", "token_identifier.txt"} <= earlier
    assert {"learned_embeds.bin", "learned_embeds_2.bin", "learned_embeds-steps-1.bin", "checkpoint-1"} <= files()
    assert not any("warning" in line.lower() or "cannot hold" in line for line in out.splitlines())


@pytest.mark.e2e
def test_a_full_pipeline_is_written_at_the_end(train: Train, smallest: Case, tmp_path: Path) -> None:
    from diffusers import DiffusionPipeline  # takes seconds to import

    from tests.reference.pipeline import diffusers_pipeline

    diffusers_pipeline(smallest.reference, tmp_path / "vocabulary").save_pretrained(tmp_path / "model")
    command = GUIDE % 1 + " --num_vectors=2 --save_as_full_pipeline"
    code, out, error = train(command)
    assert code == 0, error
    assert "saved the pipeline for diffusers: out\n" in out
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "out")
    for suffix in ("", "_2"):
        tokenizer, encoder = getattr(pipe, f"tokenizer{suffix}"), getattr(pipe, f"text_encoder{suffix}")
        assert tokenizer.convert_tokens_to_ids(["<cat-toy>", "<cat-toy>_1"]) == [49408, 49409]
        table = encoder.get_input_embeddings().weight.detach().numpy()
        trained = vectors(tmp_path / "out" / f"learned_embeds{suffix}.safetensors")["<cat-toy>"]
        np.testing.assert_array_equal(table[49408:], trained)
    # Of a run that is done, the pipeline alone is written again.
    (tmp_path / "out" / "model_index.json").unlink()
    code, out, error = train(command + " --resume_from_checkpoint=latest")
    assert code == 0, error
    assert "all 2 steps are done" in out
    assert (tmp_path / "out" / "model_index.json").is_file()


@pytest.mark.e2e
def test_kohyas_command_writes_its_file(train: Train, tmp_path: Path) -> None:
    command = (
        "--pretrained_model_name_or_path model --train_data_dir cat --token_string mycat --init_word toy "
        "--num_vectors_per_token 2 --output_dir out --output_name best --save_model_as safetensors "
        "--max_train_steps 2 --use_object_template --resolution 16 --xformers --config config.yaml --ms_mode 1"
    )
    code, out, error = train(command)
    assert code == 0, error
    assert "  --xformers has no effect: attention is computed by MindSpore's kernels" in out
    file = vectors(tmp_path / "out" / "best.safetensors")
    assert {key: array.shape for key, array in file.items()} == {"clip_l": (2, 48), "clip_g": (2, 24)}


def test_only_the_newest_checkpoint_folders_are_kept(tmp_path: Path) -> None:
    def state(updates: int) -> checkpoint.Checkpoint:
        return checkpoint.Checkpoint(2 * updates, updates, {"x": np.zeros(1, np.float32)}, "", {})

    for updates in (1, 2, 10):
        checkpoint.save_in_subfolder(state(updates), tmp_path, 2)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-2", "checkpoint-10"}
    for updates in (11, 12, 13):
        checkpoint.save_in_subfolder(state(updates), tmp_path, 0)
        checkpoint.save(state(updates), tmp_path, 0)
    assert len(list(tmp_path.glob("checkpoint-*"))) == 5
    assert len(list(tmp_path.glob("state_*.ckpt"))) == 3
    loaded = checkpoint.load(tmp_path / "checkpoint-12")
    assert (loaded.updates, loaded.run_folder) == (12, tmp_path)
    assert checkpoint.load(tmp_path / "state_24.ckpt").run_folder == tmp_path


def test_a_checkpoint_of_pytorch_is_named(tmp_path: Path) -> None:
    (tmp_path / "optimizer.bin").write_text("x")
    with pytest.raises(UserError, match=r"is a checkpoint of PyTorch's accelerate.*--initializer_file"):
        checkpoint.load(tmp_path)
    (tmp_path / "optimizer.bin").unlink()
    with pytest.raises(UserError, match=r"is a folder without state_\*\.ckpt"):
        checkpoint.load(tmp_path)
