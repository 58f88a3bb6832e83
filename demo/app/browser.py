"""The browser that shows a page: who it is, and what it typed and made before."""

from __future__ import annotations

import functools
import hashlib
import secrets
from collections.abc import Mapping
from typing import Any

import streamlit as st
from streamlit import runtime
from streamlit.runtime.scriptrunner import get_script_run_ctx

from demo.app import plain
from demo.app.app_dirs import AppDirs
from demo.app.options import widget_key
from demo.app.server import host_guard
from demo.app.server.browser_store import BrowserState, BrowserStore
from demo.app.server.worker import Task

_SAVED_PREFIXES = (widget_key(""), "weight of ")
# Other keys of the session state that hold what the user chose, with their types; not the buttons and uploads.
_SAVED: dict[str, type | tuple[type, ...]] = {
    "prompt": str,
    "negative_prompt": str,
    "task": str,
    "strength": (int, float),
    "version": str,
    "embeddings": list,
    "compared embedding": str,
    "last comparison": dict,
    "training run": str,
    "training images": str,
    "previous inputs": dict,
    "renamed embeddings": dict,
    "upload names": dict,
}


def check_host() -> None:
    """Refuse to show a page to a request for another host, and have the server refuse such requests from now on."""
    host_guard.install()
    host = _texts(st.context.headers).get("Host")
    if host is not None and not host_guard.is_allowed(host):
        plain.error(host_guard.refusal(host))
        st.stop()


def identify() -> str:
    """Return the id of this browser: that of its cookie's secret, or of this session if it has none.

    It names folders, and images name the files in them: it must not disclose the secret.
    """
    if "session_id" not in st.session_state:
        secret = host_guard.secret(_texts(st.context.cookies))
        st.session_state.session_id = (
            hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()[:16] if secret else secrets.token_hex(8)
        )
    return str(st.session_state.session_id)


def state(dirs: AppDirs) -> BrowserState:
    """Return what is stored of this browser."""
    context = get_script_run_ctx()
    browser_state = _store().get(identify(), dirs.pages)
    browser_state.note_session(context.session_id if context else "", _is_connected)
    return browser_state


def restore(dirs: AppDirs) -> None:
    """Give the widgets that Streamlit has dropped their values again; called before any is shown."""
    browser_state = state(dirs)
    values = {name: value for name, value in browser_state.values.items() if _is_saved(name) and _has_type(name, value)}
    for name, value in {**values, **browser_state.tasks}.items():
        if name not in st.session_state:
            st.session_state[name] = value
    save(dirs)


def save(dirs: AppDirs) -> None:
    """Store the values of all widgets that have been shown."""
    state(dirs).update({str(name): value for name, value in st.session_state.items() if _is_saved(str(name))})


def set_task(dirs: AppDirs, key: str, task: Task | None) -> None:
    """Remember a task under `key`, in the session state and for the browser's next session; None forgets it."""
    st.session_state[key] = task
    tasks = state(dirs).tasks
    if task is None:
        tasks.pop(key, None)
    else:
        tasks[key] = task


def _texts(values: Mapping[str, str]) -> dict[str, str]:
    """Return headers or cookies; none without a server, where Streamlit's test driver has something else for them."""
    return {name: values[name] for name in values if isinstance(values[name], str)}


def _is_saved(name: Any) -> bool:
    return str(name).startswith(_SAVED_PREFIXES) or name in _SAVED


def _has_type(name: str, value: Any) -> bool:
    """Return whether a value from a file, which may be damaged, has the type of its key; widgets check the options."""
    return isinstance(value, str if name.startswith("weight of ") else _SAVED.get(name, object))


def _is_connected(session: str) -> bool:
    """Return whether a tab shows the session; true without a server, as in tests."""
    return not runtime.exists() or runtime.get_instance().is_active_session(session)


@functools.cache
def _store() -> BrowserStore:
    return BrowserStore()
