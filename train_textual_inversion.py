"""Learn a new word from pictures: see `--help` and docs/training.md."""

from gm import command_line


def main() -> None:
    config = command_line.parse(
        "Learn a new word for SDXL from 3 to 20 pictures.", ("run", "concept", "data", "training", "loss")
    )
    from gm.training import plan  # after the flags: --help need not wait for MindSpore

    made = plan.make(config)
    from gm import api
    from gm.training import run

    toolkit = api.load(config)
    paths = run.run(toolkit.model, made, toolkit.backend)
    if toolkit.backend.leads:
        for lesson, path in zip(made.lessons, paths, strict=True):
            print(f"learned {lesson.word}: {path}")


if __name__ == "__main__":
    command_line.run(main)
