"""Changes of a model's weights while they are read from their file."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


class WeightChanges:
    """No changes; `gm.lora.merging` has those of LoRA files."""

    def __contains__(self, name: object) -> bool:
        """Return whether the parameter with MindSpore's `name` is changed."""
        return False

    def apply(self, name: str, values: np.ndarray) -> np.ndarray:
        """Return the changed `values` of the parameter `name`, float32; any dtype is taken, and not written to."""
        return values

    def check_source(self, path: str, metadata: Mapping[str, str]) -> None:
        """Raise UserError if the file `path` with these `metadata` has the changes already."""

    def metadata(self, source: Mapping[str, str]) -> dict[str, str]:
        """Return the metadata of a file with the changed weights beside those of its `source`."""
        return {}


NO_CHANGES = WeightChanges()
