from __future__ import annotations

import gzip
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from gm.checkpoints import containers
from gm.errors import UserError
from tests.checkpoints.files import assert_equal, lazy, mixed

FOREIGN = {
    "PyTorch": None,
    "pickle": pickle.dumps({"a": 1}),
    "web page": b"\n\n <!DOCTYPE html><html>not found</html>",
    "git-lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "gzip": gzip.compress(b"weights"),
    "JSON": b'{"error": "unauthorized"}',
    "image": b"\x89PNG\r\n\x1a\n" + bytes(20),
    "no whole MindSpore checkpoint": b"just some words",
    "empty": b"",
}


@pytest.mark.parametrize("word", FOREIGN)
@pytest.mark.parametrize("ending", [".ckpt", ".safetensors"])
def test_a_foreign_file_is_called_what_it_is(tmp_path: Path, word: str, ending: str) -> None:
    path = tmp_path / f"a{ending}"
    content = FOREIGN[word]
    if content is None:
        torch.save({"a": torch.ones(2)}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(UserError, match=word) as caught:
        containers.read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("length", [60, 123])
def test_a_checkpoint_is_not_taken_for_text(tmp_path: Path, length: int) -> None:
    """Its first two bytes are a line feed and a length: 60 is "<" and 123 is "{"."""
    tensor = {"a": np.arange(length - 16, dtype=np.uint8)}
    containers.write(tmp_path / "a.ckpt", lazy(tensor))
    assert (tmp_path / "a.ckpt").read_bytes()[:2] == b"\n" + bytes((length,))
    assert_equal(containers.read(tmp_path / "a.ckpt").tensors, tensor)


def test_what_is_not_there_or_no_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is not a file .*a\.ckpt"):
        containers.read(tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="is a folder"):
        containers.read(tmp_path)


def test_another_ending_is_refused_for_writing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"must end in \.ckpt or \.safetensors"):
        containers.write(tmp_path / "a.pt", lazy(mixed()))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ending", containers.ENDINGS)
def test_progress_tells_every_byte(tmp_path: Path, ending: str) -> None:
    told: list[int] = []
    containers.write(tmp_path / f"a{ending}", lazy(mixed()), progress=told.append)
    assert sum(told) == sum(array.nbytes for array in mixed().values())


MEMORY = """
import sys
import numpy as np
from gm.checkpoints import containers
from gm.checkpoints.lazy_tensor import LazyTensor, cast
def kilobytes(kind):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(kind))
source, target = sys.argv[1:]
size = 2_000_000
tensors = {f"{i}": LazyTensor((size,), "float16", lambda: np.ones(size, np.float16)) for i in range(20)}
containers.write(source, tensors)
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
before = kilobytes("VmRSS")
stored = containers.read(source).tensors
containers.write(target, {name: cast(tensor, "float32", name) for name, tensor in stored.items()})
print((kilobytes("VmHWM") - before) * 1024 / (4 * size))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts Linux's resident pages")
@pytest.mark.parametrize(("source", "target"), [("a.ckpt", "b.safetensors"), ("a.safetensors", "b.ckpt")])
def test_converting_holds_a_few_tensors_and_not_the_file(tmp_path: Path, source: str, target: str) -> None:
    command = [sys.executable, "-c", MEMORY, str(tmp_path / source), str(tmp_path / target)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert float(out) < 5  # tensors of the target's type; the whole source is as large as 10
