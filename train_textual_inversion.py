"""Train a textual inversion embedding from images: see `--help` and docs/training.md.

It also takes the command lines of diffusers', kohya's, mindone's, InvokeAI's and the original training scripts:
docs/coming_from.md.
"""

from __future__ import annotations

from typing import Any

from gm.config import cli, coming_from


def main() -> None:
    config = cli.parse(
        "Train a textual inversion embedding on 3 to 20 images.",
        ("run", "concept", "data", "training", "loss"),
        config_for=_config_for,
        programs=coming_from.TRAINING,
    )
    from gm.training import setup  # after the flags: --help need not wait for MindSpore

    training_setup = setup.prepare(config)
    from gm import api
    from gm.hub import after_training
    from gm.training import full_pipeline, trainer

    if config.training.push_to_hub:
        after_training.check(config)
    toolkit = api.load(config)
    paths = trainer.run(toolkit.model, training_setup, toolkit.backend)
    if not toolkit.backend.is_main_process:
        return
    for concept, path in zip(training_setup.concepts, paths, strict=True):
        print(f"trained {concept.placeholder_token}: {path}")
    if config.training.save_as_full_pipeline:
        print(f"saved the pipeline for diffusers: {full_pipeline.save(toolkit.config, paths)}")
    if config.training.push_to_hub:
        print(f"pushed to {after_training.push(config, paths)}")


def _config_for(weight: str) -> tuple[str, dict[str, Any]]:
    from gm.checkpoints import config_choice

    return config_choice.config_for(weight)


def entry_point() -> None:
    """Run `main` as the console script gm-train does."""
    cli.run(main)


if __name__ == "__main__":
    entry_point()
