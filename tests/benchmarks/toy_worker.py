"""A worker without a network that writes its events to a shared file and can crash."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from benchmarks.workers import Work, serve


def main() -> None:
    name, events, crash_at = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    done = 0

    def record(event: str) -> None:
        with events.open("a", encoding="utf-8") as file:
            file.write(f"{name} {event}\n")

    def work() -> dict[str, Any]:
        nonlocal done
        done += 1
        if done == crash_at:
            print("the toy is broken", file=sys.stderr)
            sys.exit(3)
        print("what a library prints on standard output")
        record(f"piece {done}")
        return {"seconds": float(done) if name == "a" else 2.0 * done}

    def set_up() -> tuple[dict[str, Any], Work]:
        record("sets up")
        return {"name": name}, work

    serve(set_up)
    record("ends")


if __name__ == "__main__":
    main()
