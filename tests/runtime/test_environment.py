"""gm/runtime/environment.py: MindSpore finds its variables set, whichever module of the toolkit imports it first."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CODE = """
import importlib, os, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "mindspore":
            print(os.environ.get("MS_ROLE"), os.environ.get("GLOG_v"), "OMPI_COMMAND" in os.environ)
            sys.stdout.flush()
            os._exit(0)

sys.meta_path.insert(0, Finder())
importlib.import_module(sys.argv[1])
"""


@pytest.mark.e2e
@pytest.mark.parametrize("module", ["gm.api", "gm.checkpoints.loading", "gm.training.trainer", "gm.models.unet"])
def test_variables_are_set_before_mindspore_is_imported(module: str) -> None:
    mpirun = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMMAND": "python"}
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("MS_", "GLOG_"))}
    process = subprocess.run(
        [sys.executable, "-c", CODE, module], env={**variables, **mpirun}, capture_output=True, text=True, check=True
    )
    assert process.stdout.split() == ["MS_WORKER", "3", "False"]
