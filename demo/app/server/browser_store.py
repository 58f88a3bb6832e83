"""What each browser has typed and made, apart from those of other browsers.

Streamlit's session state ends with a reload, and loses the widgets of a page that is left. The values here stay as long
as the server, in a file also longer: one JSON file for each browser, named by the hash of the browser's cookie.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from demo.app.server import limits
from demo.app.server.worker import Owner, Task
from gm.errors import UserError
from gm.runtime import atomic_io

log = logging.getLogger("gm")

GRACE_SECONDS = 120.0  # a tab that is reloaded, or a laptop that is closed for a moment
_MAX_BROWSERS = 500  # in memory
_MAX_VALUES = 2000  # of a browser
_MAX_FILE = 4 * 10**6  # bytes

IsConnected = Callable[[str], bool]  # whether a session, by its id, has a connection to a browser


@dataclass(eq=False)
class BrowserState:
    """Values of one browser's widgets by key, and its tasks by key.

    file: where the values are saved; sessions: ids of the Streamlit sessions of its tabs
    """

    id: str
    file: Path
    values: dict[str, Any] = field(default_factory=dict)
    tasks: dict[str, Task] = field(default_factory=dict)
    sessions: dict[str, IsConnected] = field(default_factory=dict)
    last_seen: float = field(default_factory=time.monotonic)

    @property
    def owner(self) -> Owner:
        """The browser as the owner of tasks."""
        return Owner(self.id, self.is_gone)

    def note_session(self, session: str, is_connected: IsConnected) -> None:
        """Note that a session of this browser asked for something just now."""
        others = {other: check for other, check in self.sessions.items() if check(other)}
        self.sessions = {**others, session: is_connected}
        self.last_seen = time.monotonic()

    def is_gone(self) -> bool:
        """Return whether no tab of this browser has been connected for `GRACE_SECONDS`."""
        sessions = dict(self.sessions)
        connected = {session for session, is_connected in sessions.items() if is_connected(session)}
        if connected:
            self.last_seen = time.monotonic()
        elif time.monotonic() - self.last_seen > GRACE_SECONDS:
            return True
        return False

    def update(self, values: Mapping[str, Any]) -> None:
        """Replace and save those of the `values` that JSON can hold; a full disk is logged and loses nothing else."""
        small = {name: value for name, value in values.items() if _is_small(value)}
        if all(name in self.values and self.values[name] == value for name, value in small.items()):
            return
        older = {name: value for name, value in self.values.items() if name not in small}
        self.values = dict(list({**older, **small}.items())[-_MAX_VALUES:])
        while len(text := json.dumps(self.values, indent=1)) > _MAX_FILE:
            self.values = dict(list(self.values.items())[len(self.values) // 2 :])
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with atomic_io.atomic_write(self.file) as temporary:
                temporary.write_text(text, encoding="utf-8")
        except (OSError, UserError) as error:
            log.warning("what a browser has typed is not saved: %s", error)


class BrowserStore:
    """The states of the browsers that were seen last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._states: dict[Path, BrowserState] = {}

    def get(self, id_: str, folder: Path) -> BrowserState:
        """Return the state of the browser `id_`, whose values are saved in `folder`."""
        file = folder / f"{id_}.json"
        with self._lock:
            state = self._states.pop(file, None) or BrowserState(id_, file, _read(file))
            self._states[file] = state  # the last of the dict, as the one that was seen last
            for other in list(self._states)[:-_MAX_BROWSERS]:
                del self._states[other]
        return state


def _read(file: Path) -> dict[str, Any]:
    """Return the values in a file; none, and a warning, if it is damaged."""
    try:
        if not file.is_file():
            return {}
        if file.stat().st_size > _MAX_FILE:
            raise ValueError("it is too large")
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        log.warning("%s is damaged (%s); its browser starts with the defaults", file, error)
        return {}
    if not isinstance(values, dict):
        log.warning("%s is damaged; its browser starts with the defaults", file)
        return {}
    return {name: value for name, value in values.items() if _is_small(value)}


def _is_small(value: Any) -> bool:
    """Return whether a value is one that widgets have, and not too large to be saved."""
    if isinstance(value, list):
        return len(value) <= _MAX_VALUES and all(_is_small(each) for each in value)
    if isinstance(value, dict):
        return _is_small(list(value)) and _is_small(list(value.values()))
    if isinstance(value, str):
        return len(value) <= 2 * limits.MAX_PROMPT
    return value is None or isinstance(value, (bool, int, float))
