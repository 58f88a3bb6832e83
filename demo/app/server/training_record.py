"""Records of training runs: `job.json`, which says how a run was started and by whom, and `log.jsonl`."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo.app.server.training_queue import JOB_FILE, read_pid
from gm.config import paths
from gm.errors import UserError, shorten
from gm.runtime import atomic_io

_NUMBERS = ("step", "loss", "loss_smoothed")  # of a record of a training step
_VALIDATION = ("step", "validation_loss")


@dataclass(frozen=True)
class Launch:
    """How a run's process was started last: YAML file, command-line options, process id, and time of the first start.

    `console_offset` is the size of the console log before this process. `stop_requested`: SIGTERM has been sent.
    `queued`: time of this start. `owner`: id of the browser that started it, "" for everyone's; `shared`: by its owner,
    with everyone; `version`: name of the model on the page. The process id is 0 until the process has been started.
    """

    config: str
    options: dict[str, Any]
    pid: int
    started: float  # seconds since 1970
    console_offset: int = 0
    stop_requested: bool = False
    queued: float = 0.0
    owner: str = ""
    shared: bool = False
    version: str = ""

    @property
    def total_step(self) -> int:
        return int(self.options["total_step"])

    @property
    def placeholder_token(self) -> str:
        return str(self.options.get("placeholder_token") or "")

    def is_visible_to(self, browser: str) -> bool:
        """Return whether the browser of this id may see the run."""
        return self.shared or self.owner in ("", browser)

    @classmethod
    def read(cls, folder: Path) -> Launch:
        """Return the record in a run's folder; UserError if it is missing or damaged."""
        try:
            paths.check_regular(folder / JOB_FILE)
            launch = cls(**json.loads((folder / JOB_FILE).read_text(encoding="utf-8")))
            launch._check()
        except (OSError, ValueError, TypeError, RecursionError, KeyError, OverflowError) as error:
            raise UserError(f"the record {JOB_FILE} of the run {folder.name} is damaged: {shorten(error)}") from error
        return launch if launch.pid else dataclasses.replace(launch, pid=read_pid(folder))

    def write(self, folder: Path) -> None:
        """Write the record; UserError if that is not possible."""
        with atomic_io.atomic_write(folder / JOB_FILE) as temporary:
            temporary.write_text(json.dumps(dataclasses.asdict(self), indent=1), encoding="utf-8")

    def _check(self) -> None:
        """Raise ValueError for a field of another type, or one without which the run cannot be shown."""
        for name, kind in typing.get_type_hints(type(self)).items():
            kind = typing.get_origin(kind) or kind
            value = getattr(self, name)
            if not isinstance(value, (int, float) if kind is float else kind):
                raise ValueError(f"{name} is {value!r}")
        if not 0 <= self.started < 1e11 or self.console_offset < 0 or self.pid < 0:
            raise ValueError("a negative number, or a time that cannot be")
        if self.total_step < 1:
            raise ValueError(f"total_step is {self.total_step}")


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the records of training steps in a log: `step`, `loss`, `loss_smoothed`, `learning_rate` and more.

    Others hold nearest tokens or validation losses. Lines that are damaged, or are being written, are left out.
    """
    return [record for record in _read_lines(path) if _has_numbers(record, _NUMBERS)]


def read_validation(path: Path) -> list[dict[str, Any]]:
    """Return the records of validation losses in a log: `step`, `validation_loss` and more."""
    return [record for record in _read_lines(path) if _has_numbers(record, _VALIDATION)]


def _read_lines(path: Path) -> list[Any]:
    records = []
    with contextlib.suppress(OSError):
        if path.is_file():
            for line in path.read_bytes().splitlines():
                with contextlib.suppress(ValueError, RecursionError):
                    records.append(json.loads(line))
    return records


def _has_numbers(record: Any, names: Sequence[str]) -> bool:
    if not isinstance(record, dict):
        return False
    values = [record.get(name) for name in names]
    numbers = [value for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)]
    return len(numbers) == len(names) and math.isfinite(numbers[0])
