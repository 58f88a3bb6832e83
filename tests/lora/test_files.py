"""The option's values: FILE, FILE:strength, folders, hashes."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from gm.errors import UserError
from gm.lora import files
from gm.lora.files import LoraFile, LoraRecord


@pytest.mark.parametrize(
    ("text", "path", "strength"),
    [
        ("a.safetensors", "a.safetensors", 1.0),
        ("a.safetensors:0.8", "a.safetensors", 0.8),
        ("a.safetensors:-1", "a.safetensors", -1.0),
        ("a.safetensors: .5 ", "a.safetensors", 0.5),
        ("a.safetensors:0", "a.safetensors", 0.0),
        (r"C:\loras\a.safetensors", r"C:\loras\a.safetensors", 1.0),
        (r"C:\loras\a.safetensors:0.8", r"C:\loras\a.safetensors", 0.8),
        ("C:/loras/a.safetensors:1e-1", "C:/loras/a.safetensors", 0.1),
        ("folder:0.5", "folder", 0.5),
        ("v1:2/a.pt", "v1:2/a.pt", 1.0),
    ],
)
def test_the_strength_follows_the_last_colon(text: str, path: str, strength: float) -> None:
    assert files.parse(text) == LoraFile(Path(path), strength)


def test_a_file_with_a_colon_in_its_name_is_found(tmp_path: Path) -> None:
    (tmp_path / "ratio 1:2").touch()
    assert files.parse(str(tmp_path / "ratio 1:2")) == LoraFile(tmp_path / "ratio 1:2", 1.0)
    assert files.parse(f"{tmp_path}/ratio 1:2:0.5") == LoraFile(tmp_path / "ratio 1:2", 0.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.safetensors:strong", "the strength 'strong' is not a number; write a.safetensors:0.8"),
        ("a.safetensors:", "the strength '' is not a number"),
        ("a.safetensors:0,8", "the strength '0,8' is not a number"),
        ("a.safetensors:nan", "the strength is nan; give a finite number"),
        ("a.safetensors:-inf", "the strength is -inf; give a finite number"),
        ("a.safetensors:1:0.5", "has two strengths; a LoRA has one"),
    ],
)
def test_a_strength_that_is_none_is_named(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        files.parse(text)


def test_home_folder_and_empty_values(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.safetensors").touch()
    assert files.parse_all(["~/a.safetensors:2", "", " "]) == [LoraFile(tmp_path / "a.safetensors", 2.0)]


def test_a_missing_file_is_named_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "detail.safetensors").touch()
    for text, message in [
        ("detial.safetensors:0.8", "does not exist; did you mean 'detail.safetensors'?"),
        ("detail.safetensors=0.8", "does not exist; the strength follows a colon: "),
    ]:
        with pytest.raises(UserError, match=re.escape(message)):
            files.parse_all([str(tmp_path / text)])


def test_one_file_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").touch()
    with pytest.raises(UserError, match="twice; give it once, with the sum of the strengths"):
        files.parse_all([f"{tmp_path}/a.safetensors:0.5", f"{tmp_path}/../{tmp_path.name}/a.safetensors"])


def test_a_folder_stands_for_the_lora_file_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "my-lora"
    folder.mkdir()
    with pytest.raises(UserError, match="is a folder without a LoRA file"):
        files.parse_all([str(folder)])
    (folder / "a.safetensors").touch()
    assert files.parse_all([f"{folder}:0.5"]) == [LoraFile(folder / "a.safetensors", 0.5)]
    (folder / "b.safetensors").touch()
    with pytest.raises(UserError, match=r"is a folder of several files \(a.safetensors, b.safetensors\); give one"):
        files.parse_all([str(folder)])
    (folder / "pytorch_lora_weights.safetensors").touch()
    (lora,) = files.parse_all([str(folder)])
    assert (lora.path.name, lora.name) == ("pytorch_lora_weights.safetensors", "my-lora")


def test_the_hash_is_that_of_the_tensors_alone(tmp_path: Path) -> None:
    """AUTOMATIC1111's and Civitai's: the first 12 digits of the SHA-256 of what follows the header."""
    values = np.arange(6, dtype=np.float32)
    save_file({"a": values}, tmp_path / "a.safetensors", {"ss_output_name": "one"})
    save_file({"a": values}, tmp_path / "b.safetensors", {"ss_output_name": "another name"})
    expected = hashlib.sha256(values.tobytes()).hexdigest()[:12]
    assert [files.short_hash(tmp_path / name) for name in ("a.safetensors", "b.safetensors")] == [expected] * 2
    (tmp_path / "c.pt").write_bytes(b"PK whole")
    assert files.short_hash(tmp_path / "c.pt") == hashlib.sha256(b"PK whole").hexdigest()[:12]


def test_records_are_json_and_back() -> None:
    records = [LoraRecord("b", 1.0, "2"), LoraRecord("a", -0.5, "1")]
    assert files.from_json(files.as_json(records)) == records[::-1]
    assert [files.from_json(value) for value in (None, "x", [1], [{"name": "a"}])] == [[]] * 4


def test_records_differ_by_content_and_strength_not_by_name_or_order() -> None:
    a, b = LoraRecord("a", 1.0, "1"), LoraRecord("b", 0.5, "2")
    assert not files.differ([a, b], [b, LoraRecord("renamed", 1.0, "1")])
    assert files.differ([a], [LoraRecord("a", 0.9, "1")])
    assert files.differ([a], [])
    assert files.missing([a, b], [LoraRecord("c", 0.1, "2")]) == [a]
