"""gm/checkpoints/containers.py: tensor files of every container format."""

from __future__ import annotations

import gzip
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

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
    "not a complete MindSpore checkpoint": b"just some words",
    "empty": b"",
}


@pytest.mark.reference
@pytest.mark.parametrize("description", FOREIGN)
@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_a_foreign_file_is_identified(tmp_path: Path, description: str, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    content = FOREIGN[description]
    if content is None:
        import torch

        torch.save({"a": torch.ones(2)}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(UserError, match=description) as caught:
        containers.read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("length", [60, 123])
def test_a_checkpoint_is_not_mistaken_for_text(tmp_path: Path, length: int) -> None:
    """Its first two bytes are a line feed and a length: 60 is "<" and 123 is "{"."""
    tensor = {"a": np.arange(length - 16, dtype=np.uint8)}
    containers.write(tmp_path / "a.ckpt", lazy(tensor))
    assert (tmp_path / "a.ckpt").read_bytes()[:2] == b"\n" + bytes((length,))
    assert_equal(containers.read(tmp_path / "a.ckpt").tensors, tensor)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.ckpt is not a file"):
        containers.read(tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="is a folder"):
        containers.read(tmp_path)


def test_writing_another_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"must end in \.ckpt or \.safetensors"):
        containers.write(tmp_path / "a.pt", lazy(mixed()))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", containers.SUFFIXES)
def test_progress_counts_every_byte(tmp_path: Path, suffix: str) -> None:
    sizes: list[int] = []
    containers.write(tmp_path / f"a{suffix}", lazy(mixed()), progress=sizes.append)
    assert sum(sizes) == sum(array.nbytes for array in mixed().values())


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


@pytest.mark.e2e
@pytest.mark.skipif(sys.platform != "linux", reason="counts Linux's resident pages")
@pytest.mark.parametrize(("source", "target"), [("a.ckpt", "b.safetensors"), ("a.safetensors", "b.ckpt")])
def test_conversion_holds_a_few_tensors_in_memory_not_the_file(tmp_path: Path, source: str, target: str) -> None:
    command = [sys.executable, "-c", MEMORY, str(tmp_path / source), str(tmp_path / target)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert float(out) < 5  # tensors of the target's type; the whole source is as large as 10
