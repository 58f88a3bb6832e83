"""A worker without a network: says on a shared file what it does, and can be told to crash."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from benchmarks.worker import Work, serve


def main() -> None:
    name, diary, crash_at = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    done = 0

    def say(what: str) -> None:
        with diary.open("a", encoding="utf-8") as file:
            file.write(f"{name} {what}\n")

    def work() -> dict[str, Any]:
        nonlocal done
        done += 1
        if done == crash_at:
            print("the toy is broken", file=sys.stderr)
            sys.exit(3)
        print("what a library prints on standard output")
        say(f"piece {done}")
        return {"seconds": float(done) if name == "a" else 2.0 * done}

    def set_up() -> tuple[dict[str, Any], Work]:
        say("sets up")
        return {"name": name}, work

    serve(set_up)
    say("ends")


if __name__ == "__main__":
    main()
