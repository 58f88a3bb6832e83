"""LoRA files as the option `--lora_weight` names them: file or folder, strength, and the hash that identifies them."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from gm.config import paths
from gm.errors import UserError, did_you_mean, shorten

_SUFFIX = re.compile(r"\.(?:safetensors|ckpt|pt|pth|bin)$", re.IGNORECASE)
# What diffusers' `save_lora_weights` and PEFT's `save_pretrained` write into a folder.
_FOLDER_FILES = (
    "pytorch_lora_weights.safetensors",
    "pytorch_lora_weights.bin",
    "adapter_model.safetensors",
    "adapter_model.bin",
)
_CHUNK = 1 << 20  # bytes


@dataclass(frozen=True)
class LoraFile:
    """A LoRA file and its strength, by which the change of the weights is multiplied; a negative one reverses it."""

    path: Path
    strength: float = 1.0

    @property
    def name(self) -> str:
        """Name of the file without folders and suffix; of a folder's usual file, the folder's name."""
        path = self.path.parent if self.path.name in _FOLDER_FILES else self.path
        return _SUFFIX.sub("", PureWindowsPath(path.resolve().name if path.name in ("", "..") else path.name).name)

    def __str__(self) -> str:
        return f"{self.path}:{self.strength:g}"


@dataclass(frozen=True)
class LoraRecord:
    """Record of a LoRA in images, embedding files and training states.

    hash: that of AUTOMATIC1111 and Civitai (`short_hash`)
    """

    name: str
    strength: float
    hash: str

    def __str__(self) -> str:
        return f"{self.name}:{self.strength:g} ({self.hash})"


def parse(text: str) -> LoraFile:
    """Return the file of `text`, `FILE` or `FILE:strength`.

    What follows the last colon is the strength if it is a number and if no file has the whole name: `C:\\a.safetensors`
    is a file, `C:\\a.safetensors:0.8` has a strength. Raises UserError for a strength that is no finite number.
    """
    text = paths.expand(text.strip())
    head, _, tail = text.rpartition(":")
    if not head or Path(text).exists():
        return LoraFile(Path(text))
    try:
        strength = float(tail)
    except ValueError:
        if not _is_present(head):
            return LoraFile(Path(text))  # a path with a colon, such as that of a Windows drive
        raise UserError(f"--lora_weight {text}: the strength {tail!r} is not a number; write {head}:0.8") from None
    if not math.isfinite(strength):
        raise UserError(f"--lora_weight {text}: the strength is {tail}; give a finite number")
    before, _, second = head.rpartition(":")
    if before and not _is_present(head) and _is_number(second):
        raise UserError(f"--lora_weight {text} has two strengths; a LoRA has one, for UNet and text encoders")
    return LoraFile(Path(head), strength)


def parse_all(texts: Iterable[str]) -> list[LoraFile]:
    """Return the files of the option's values, folders replaced by the LoRA file in them; empty ones are left out.

    Raises UserError for a file that does not exist, a folder without one LoRA file, one file given twice, and as
    `parse` does.
    """
    files = [_find(parse(text)) for text in texts if text.strip()]
    for number, file in enumerate(files):
        if any(file.path.samefile(other.path) for other in files[:number]):
            raise UserError(f"--lora_weight names {file.path} twice; give it once, with the sum of the strengths")
    return files


def read_records(texts: Iterable[str]) -> list[LoraRecord]:
    """Return the records of the files that the option's values name; raises UserError as `parse_all` does."""
    return records(parse_all(texts))


def records(files: Iterable[LoraFile]) -> list[LoraRecord]:
    """Return the records of `files`, without those of strength 0, which change nothing."""
    return [LoraRecord(file.name, file.strength, short_hash(file.path)) for file in files if file.strength]


def as_json(loras: Iterable[LoraRecord]) -> list[dict[str, Any]]:
    """Return `loras` as JSON values, sorted by name: the order of LoRAs has no effect."""
    return [dataclasses.asdict(record) for record in sorted(loras, key=lambda record: (record.name, record.hash))]


def from_json(values: Any) -> list[LoraRecord]:
    """Return the LoRAs of JSON values, [] for anything that `as_json` has not made."""
    entries = values if isinstance(values, list) else []
    fields = {field.name for field in dataclasses.fields(LoraRecord)}
    return [LoraRecord(**entry) for entry in entries if isinstance(entry, dict) and entry.keys() == fields]


def describe(loras: Sequence[LoraRecord]) -> str:
    """Return names, strengths and hashes for a message."""
    return ", ".join(map(str, loras)) or "none"


def missing(trained_with: Iterable[LoraRecord], loaded: Iterable[LoraRecord]) -> list[LoraRecord]:
    """Return those of `trained_with` that are not `loaded`; another name or strength makes no other LoRA."""
    hashes = {record.hash for record in loaded}
    return [record for record in trained_with if record.hash not in hashes]


def differ(some: Iterable[LoraRecord], others: Iterable[LoraRecord]) -> bool:
    """Return whether other changes are merged: other files or strengths, whatever the files' names."""
    first, second = ({(record.hash, record.strength) for record in records} for records in (some, others))
    return first != second


def short_hash(path: Path) -> str:
    """Return 12 digits of a SHA-256: of the tensors of a safetensors file, of all of another file.

    AUTOMATIC1111 (modules/hashes.py, `addnet_hash_safetensors`) and Civitai ("AutoV3") know a LoRA by it; changed
    metadata do not change it.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        header = file.read(9)
        is_safetensors = header[4:9] == b"\0\0\0\0{"  # length of a header of less than 4 GB, then its JSON
        file.seek(8 + int.from_bytes(header[:8], "little") if is_safetensors else 0)
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()[:12]


def _find(file: LoraFile) -> LoraFile:
    """Return `file`, in the place of a folder the LoRA file in it."""
    path = file.path
    if path.is_file():
        return file
    if not path.is_dir():
        raise UserError(_missing_message(path))
    files = [path / name for name in _FOLDER_FILES if (path / name).is_file()]
    files = files or sorted(each for each in path.iterdir() if each.suffix == ".safetensors")
    if not files:
        raise UserError(f"--lora_weight {path} is a folder without a LoRA file; give the file")
    if len(files) > 1 and files[0].name not in _FOLDER_FILES:
        names = shorten(", ".join(each.name for each in files), 100)
        raise UserError(f"--lora_weight {path} is a folder of several files ({names}); give one of them")
    return LoraFile(files[0], file.strength)


def _missing_message(path: Path) -> str:
    name, sign, tail = str(path).rpartition("=")
    if sign and _is_number(tail):
        return f"--lora_weight {path} does not exist; the strength follows a colon: {name}:{tail}"
    names = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
    return f"--lora_weight {path} does not exist{did_you_mean(path.name, names)}; it names a LoRA file, FILE[:strength]"


def _is_present(path: str) -> bool:
    return Path(path).exists() or bool(_SUFFIX.search(path))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
