"""Where the app keeps things: what one visitor draws, and what all of them learn."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path

import streamlit as st


@dataclass(frozen=True)
class Places:
    """`runs` is watched for learned words; `outputs` has a folder for each visitor."""

    runs: Path
    outputs: Path

    @property
    def trained(self) -> Path:
        """Where runs that are started on the page write to."""
        return self.runs / "app"

    @property
    def uploaded(self) -> Path:
        """Where embedding files that are sent are stored."""
        return self.runs / "uploaded"

    @property
    def own(self) -> Path:
        """The folder of this visitor's images."""
        if "visitor" not in st.session_state:
            st.session_state.visitor = secrets.token_hex(8)
        return self.outputs / str(st.session_state.visitor)
