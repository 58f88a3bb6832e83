"""Docs: the logs that `docs/ascend.md` shows are what the toolkit writes."""

from __future__ import annotations

import ast
import io
import re
from pathlib import Path

from gm.training.callbacks.console import ConsoleProgress
from gm.training.step_result import StepResult

ROOT = Path(__file__).resolve().parents[1]
PLACEHOLDER = r"%[\d.]*[sdfg]"


def log_lines() -> list[str]:
    """Return the lines of the page's logs; the indented blocks are of other programs."""
    shown = re.findall(r"^```text\n(.*?)^```", (ROOT / "docs" / "ascend.md").read_text(), re.MULTILINE | re.DOTALL)
    return [line for block in shown for line in block.splitlines()]


def messages() -> str:
    """Return a regular expression of all texts in `gm/` with six letters and more; their values may be anything."""
    patterns = set()
    for file in (ROOT / "gm").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else "%s" for part in parts)
            if len(re.findall("[a-z]", re.sub(PLACEHOLDER, "", text))) >= 6:
                patterns.add(".*".join(re.escape(fixed.replace("%%", "%")) for fixed in re.split(PLACEHOLDER, text)))
    return "|".join(patterns)


def test_every_line_of_the_logs_is_a_message_of_the_toolkit() -> None:
    known = re.compile(messages())
    assert len(log_lines()) == 13
    assert [line for line in log_lines() if not known.fullmatch(line)] == []
    assert not known.fullmatch("running on Ascend; --device_target decides")


def test_the_lines_of_steps_are_written_as_shown() -> None:
    shown = [line for line in log_lines() if line.startswith("step ")]
    stream = io.StringIO()
    results = [
        StepResult(1, 1, 0.0101, 0.0101, True, 0, 0.04, 1.0, 28.6),
        StepResult(3, 3, 0.0153, 0.0153, True, 0, 0.04, 1.0, 0.262, is_last=True),
    ]
    progress = ConsoleProgress(3, 3, stream)
    for result in results:
        progress.on_step_end(result)
    progress = ConsoleProgress(3000, 750, stream)
    progress.on_step_end(StepResult(12, 3, 0.1021, 0.1021, True, 4, 0.04, 1.0, 0.14))
    *first, skipped = stream.getvalue().splitlines()
    assert shown[:2] == first
    assert re.sub(r"\S+ left", "", shown[2]) == re.sub(r"\S+ left", "", skipped)
