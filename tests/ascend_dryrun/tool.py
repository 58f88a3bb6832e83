"""The dry run as a command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.project import ALL_CORES

ROOT = Path(__file__).resolve().parents[2]
TINY = "configs/training/tiny_textual_inversion.yaml"
TINY_SD1 = "configs/training/tiny_sd1_textual_inversion.yaml"


def run_tool(json_file: Path, *flags: str, config: str = TINY) -> dict[str, Any]:
    """Run the tool for `config`, the tiny model's, and return the counts of the one card by precision and graph."""
    command = [
        *ALL_CORES,
        sys.executable,
        "tools/ascend_dryrun/dryrun.py",
        "--config",
        config,
        "--json",
        str(json_file),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, *flags], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    (counts,) = json.loads(json_file.read_text()).values()
    return counts
