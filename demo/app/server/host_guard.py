"""The names by which the server may be asked, and the cookie by which it knows a browser again.

The page of a stranger may change the address of its own name to 127.0.0.1 once it is loaded (DNS rebinding). Its
requests then carry its name as `Origin` and as `Host`, which Streamlit finds equal, whatever `server.enableCORS` says,
and accepts. Streamlit has no option for that. Its handlers are Tornado's, though, and Tornado calls
`RequestHandler.prepare` before each, WebSockets included; none of Streamlit's overrides it. `install` puts the check
there. The app calls it when the first page is shown, and checks that page's own request itself, by `st.context`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from urllib.parse import urlsplit

import streamlit as st
from tornado.web import RequestHandler

_LOCAL = ("localhost", "127.0.0.1", "::1")
_ANY_ADDRESS = ("", "0.0.0.0", "::")  # of `server.address`: of all network cards, the name of none
_HEALTH = ("/healthz", "/_stcore/health")  # asked by whatever watches the server, by its address
_NOT_IN_HOSTS = set("@/\\?#")
_COOKIE = "gm_browser"
_XSRF_COOKIE = "_streamlit_xsrf"
_COOKIE_SECONDS = 400 * 24 * 3600  # browsers allow no more


def install() -> None:
    """Check every request to this process's server from now on; a second call has no effect."""
    RequestHandler.prepare = _prepare  # type: ignore[method-assign,assignment]


def is_allowed(host: str) -> bool:
    """Return whether a request with this header `Host` is for this server: for localhost or a configured name."""
    return _host_name(host) in allowed_hosts()


def allowed_hosts() -> set[str]:
    """Return localhost and the names of Streamlit's options for addresses."""
    options = [st.get_option(name) or "" for name in ("browser.serverAddress", "server.address")]
    names = {_host_name(urlsplit(each).netloc or each) for each in (*options, *_origins())}
    return {*_LOCAL, *names.difference(_ANY_ADDRESS)}


def refusal(host: str) -> str:
    """Return what to tell a visitor whose request is refused."""
    name = _host_name(host)[:100] or "that name"
    return f'This app is not served as {name}; its owner can set browser.serverAddress = "{name}" for Streamlit.'


def secret(cookies: Mapping[str, str]) -> str:
    """Return the secret that tells a browser apart by its cookies, "" if it has none yet.

    Before a browser has the app's own cookie, which stays, it is derived from that of Streamlit, which is sent first.
    """
    if own := cookies.get(_COOKIE, ""):
        return own
    # Tornado's version 2: 2|mask|token|time, in which the token is XORed with a mask that changes.
    parts = cookies.get(_XSRF_COOKIE, "").strip('"').split("|")
    try:
        mask, masked = bytes.fromhex(parts[1]), bytes.fromhex(parts[2])
    except (IndexError, ValueError):
        return ""
    if len(mask) != 4 or len(masked) < 16:
        return ""
    token = bytes(byte ^ mask[k % 4] for k, byte in enumerate(masked))
    return hashlib.sha256(b"gm browser " + token).hexdigest()


def _prepare(handler: RequestHandler) -> None:
    """Refuse a request for another host; else give the browser its cookie."""
    request = handler.request
    host = request.headers.get("Host", "")
    if not is_allowed(host) and not request.path.endswith(_HEALTH):
        handler.set_status(403)
        handler.set_header("Content-Type", "text/plain; charset=utf-8")
        handler.finish(refusal(host))
        return
    cookies = {name: morsel.value for name, morsel in request.cookies.items()}
    value = secret(cookies)
    if value and _COOKIE not in cookies:
        is_https = request.protocol == "https"
        handler.set_cookie(
            _COOKIE, value, max_age=_COOKIE_SECONDS, httponly=True, samesite="Lax", secure=is_https, path="/"
        )


def _host_name(host: str) -> str:
    """Return the name in a header `Host` without its port, "" if it is none."""
    if _NOT_IN_HOSTS & set(host):
        return ""
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:  # such as "[::1"
        return ""


def _origins() -> list[str]:
    """Return Streamlit's option `server.corsAllowedOrigins`, which version 1.50 does not have yet."""
    try:
        return list(st.get_option("server.corsAllowedOrigins") or [])
    except RuntimeError:
        return []
