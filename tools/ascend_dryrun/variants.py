"""Options that change the graphs of a config."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gm.config import Config, with_concepts


@dataclass(frozen=True)
class Variant:
    """Options that change graphs: `overrides` of a config, and the `graphs` that they change."""

    graphs: tuple[str, ...]
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    concepts: tuple[Mapping[str, Any], ...] = ()
    num_chunks: int = 1

    def apply(self, config: Config) -> Config:
        """Return `config` with the options of this variant."""
        replaced = {
            name: dataclasses.replace(getattr(config, name), **values) for name, values in self.overrides.items()
        }
        config = dataclasses.replace(config, **replaced)
        return with_concepts(config, self.concepts) if self.concepts else config


_CONCEPTS = ({"placeholder_token": "<a>", "data_path": "a"}, {"placeholder_token": "<b>", "negative": True})
VARIANTS = {
    "negative concept": Variant(("train_step",), concepts=_CONCEPTS),
    "Huber loss": Variant(("train_step",), {"loss": {"loss_type": "huber"}}),
    "long prompts": Variant(("train_step", "project_context", "denoiser"), num_chunks=2),
    "Prodigy": Variant(("update", "update_of_8_ranks"), {"training": {"optimizer": "prodigy"}}),
    "AdamW": Variant(("update", "update_of_8_ranks"), {"training": {"optimizer": "adamw"}}),
    "preserved norms": Variant(("update",), {"training": {"preserve_embedding_norm": 0.5}}),
    "no gradient clipping": Variant(("update",), {"training": {"max_grad_norm": 0.0}}),
    "one text encoder": Variant(("update",), {"training": {"learning_rate_clip_g": 0.0}}),
    "no guidance": Variant(("project_context", "denoiser"), {"sampling": {"guidance_scale": 1.0}}),
    "rescaled guidance": Variant(("denoiser",), {"sampling": {"guider": "rescaled"}}),
    # Last: it marks the Cells that models share (`gm.ops.shared_cell`), also for the models after it.
    "gradient checkpointing": Variant(("train_step",), {"training": {"gradient_checkpointing": True}}),
}
