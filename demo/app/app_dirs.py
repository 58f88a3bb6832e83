"""The folders that the app reads and writes."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path

import streamlit as st


@dataclass(frozen=True)
class AppDirs:
    """Folders of the app.

    `runs` holds training runs and embedding files and is watched for new ones; `outputs` has a folder for each session.
    """

    runs: Path
    outputs: Path

    @property
    def training_runs(self) -> Path:
        """Folder of the runs that the page Train starts."""
        return self.runs / "app"

    @property
    def uploads(self) -> Path:
        """Folder of uploaded embedding files."""
        return self.runs / "uploaded"

    @property
    def session_images(self) -> Path:
        """Folder of the images that this browser session generates."""
        if "session_id" not in st.session_state:
            st.session_state.session_id = secrets.token_hex(8)
        return self.outputs / str(st.session_state.session_id)
