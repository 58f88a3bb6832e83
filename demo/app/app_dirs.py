"""The folders that the app reads and writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gm.config import paths


@dataclass(frozen=True)
class AppDirs:
    """Folders of the app.

    `runs` holds training runs and embedding files and is watched for new ones; `outputs` has a folder for each browser.
    `checkpoints` has the weights to choose from.
    """

    runs: Path
    outputs: Path
    checkpoints: Path = paths.PROJECT / "checkpoints"

    @property
    def folders(self) -> tuple[Path, ...]:
        """The folders, which messages to visitors do not name."""
        return self.runs, self.outputs, self.checkpoints

    @property
    def training_runs(self) -> Path:
        """Folder of the runs that the page Train starts."""
        return self.runs / "app"

    @property
    def pages(self) -> Path:
        """Folder of what each browser has typed."""
        return self.training_runs / "pages"

    @property
    def all_uploads(self) -> Path:
        """Folder with a folder of uploaded embedding files for each browser."""
        return self.runs / "uploaded" / "browsers"

    def uploads(self, browser: str) -> Path:
        """Return the folder of the embedding files that `browser`, an id, has uploaded."""
        return self.all_uploads / browser

    def images(self, browser: str) -> Path:
        """Return the folder of the images that `browser`, an id, generates."""
        return self.outputs / browser
