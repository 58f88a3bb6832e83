"""Learn a new word from images: see `--help` and docs/training.md."""

from gm.config import cli


def main() -> None:
    config = cli.parse("Learn a new word for SDXL from 3 to 20 images.", ("run", "concept", "data", "training", "loss"))
    from gm.training import setup  # after the flags: --help need not wait for MindSpore

    made = setup.prepare(config)
    from gm import api
    from gm.training import trainer

    toolkit = api.load(config)
    paths = trainer.run(toolkit.model, made, toolkit.backend)
    if toolkit.backend.is_main_process:
        for concept, path in zip(made.concepts, paths, strict=True):
            print(f"learned {concept.word}: {path}")


def entry_point() -> None:
    """Run `main` as the console script gm-train does."""
    cli.run(main)


if __name__ == "__main__":
    entry_point()
