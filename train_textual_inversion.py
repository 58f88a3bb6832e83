"""Train a textual inversion embedding from images: see `--help` and docs/training.md."""

from __future__ import annotations

from typing import Any

from gm.config import cli


def main() -> None:
    config = cli.parse(
        "Train a textual inversion embedding of SDXL on 3 to 20 images.",
        ("run", "concept", "data", "training", "loss"),
        config_for=_config_for,
    )
    from gm.training import setup  # after the flags: --help need not wait for MindSpore

    training_setup = setup.prepare(config)
    from gm import api
    from gm.training import trainer

    toolkit = api.load(config)
    paths = trainer.run(toolkit.model, training_setup, toolkit.backend)
    if toolkit.backend.is_main_process:
        for concept, path in zip(training_setup.concepts, paths, strict=True):
            print(f"trained {concept.placeholder_token}: {path}")


def _config_for(weight: str) -> tuple[str, dict[str, Any]]:
    from gm.checkpoints import config_choice

    return config_choice.config_for(weight)


def entry_point() -> None:
    """Run `main` as the console script gm-train does."""
    cli.run(main)


if __name__ == "__main__":
    entry_point()
