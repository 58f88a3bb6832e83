"""Requests for other hosts, and the cookie that tells browsers apart."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import streamlit as st
from tornado.httpclient import AsyncHTTPClient, HTTPClientError, HTTPRequest
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port
from tornado.web import Application, RequestHandler
from tornado.websocket import WebSocketHandler, websocket_connect

from demo.app.server import host_guard


class Page(RequestHandler):
    def get(self) -> None:
        self.write("a page")

    def put(self) -> None:
        self.write("stored")


class Stream(WebSocketHandler):
    def open(self, *args: str, **kwargs: str) -> None:
        self.write_message("open")


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Return the function that sends requests to a server with the guard: (host, path, method, headers) of each."""
    monkeypatch.setattr(RequestHandler, "prepare", RequestHandler.prepare)  # put back after the test
    host_guard.install()

    async def ask(requests: list[tuple[str, str, str, dict[str, str]]]) -> list[Any]:
        server = HTTPServer(Application([(r"/stream", Stream), (r".*", Page)]))
        socket, port = bind_unused_port()
        server.add_socket(socket)
        answers = []
        for host, path, method, headers in requests:
            request = HTTPRequest(
                f"{'ws' if method == 'WS' else 'http'}://127.0.0.1:{port}{path}",
                method=method if method != "WS" else "GET",
                headers={"Host": host, **headers},
                body=b"x" if method == "PUT" else None,
            )
            try:
                if method == "WS":
                    connection = await websocket_connect(request)
                    answers.append(await connection.read_message())
                    connection.close()
                else:
                    answers.append(await AsyncHTTPClient().fetch(request, raise_error=False))
            except HTTPClientError as error:
                answers.append(error.code)
        server.stop()
        return answers

    return lambda *requests: asyncio.run(ask(list(requests)))


def test_requests_for_another_host_are_refused_before_any_handler(serve: Callable[..., Any]) -> None:
    """A page whose name was rebound to 127.0.0.1 sends its own name as Host and as Origin."""
    page, upload, own, health = serve(
        ("evil.example:8501", "/", "GET", {"Origin": "http://evil.example:8501"}),
        ("evil.example", "/_stcore/upload_file/a/b", "PUT", {}),
        ("localhost:8501", "/", "GET", {}),
        ("10.0.0.5", "/_stcore/health", "GET", {}),
    )
    assert [answer.code for answer in (page, upload, own, health)] == [403, 403, 200, 200]
    assert "is not served as evil.example" in page.body.decode()
    assert (own.body, health.body) == (b"a page", b"a page")


def test_websockets_for_another_host_are_refused(serve: Callable[..., Any]) -> None:
    host = "evil.example:8501"
    assert serve((host, "/stream", "WS", {"Origin": f"http://{host}"})) == [403]
    assert serve(("127.0.0.1:8501", "/stream", "WS", {"Origin": "http://127.0.0.1:8501"})) == ["open"]


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("localhost", True),
        ("LOCALHOST:8501", True),
        ("localhost.:8501", True),
        ("127.0.0.1:8501", True),
        ("[::1]:8501", True),
        ("app.example.org", True),
        ("APP.example.org:443", True),
        ("other.example.org", False),
        ("", False),
        ("0.0.0.0", False),
        ("evil.example", False),
        ("localhost.evil.example", False),
        ("localhost@evil.example", False),
        ("evil.example#localhost", False),
        ("[::1", False),
    ],
)
def test_hosts_are_localhost_and_the_configured_names(
    host: str, allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"browser.serverAddress": "App.example.org", "server.address": "0.0.0.0"}
    monkeypatch.setattr(st, "get_option", options.get)
    assert host_guard.is_allowed(host) == allowed


def test_a_browser_keeps_its_secret_when_the_cookie_replaces_that_of_streamlit(serve: Callable[..., Any]) -> None:
    def xsrf(mask: str, token: bytes) -> str:
        key = bytes.fromhex(mask)
        return f"2|{mask}|{bytes(byte ^ key[k % 4] for k, byte in enumerate(token)).hex()}|1700000000"

    first = host_guard.secret({"_streamlit_xsrf": xsrf("01020304", b"0123456789abcdef")})
    assert first == host_guard.secret({"_streamlit_xsrf": xsrf("a1b2c3d4", b"0123456789abcdef")})  # Tornado's next mask
    assert first != host_guard.secret({"_streamlit_xsrf": xsrf("01020304", b"another browser!")})
    (answer,) = serve(("localhost", "/", "GET", {"Cookie": f"_streamlit_xsrf={xsrf('01020304', b'0123456789abcdef')}"}))
    (cookie,) = (line for line in answer.headers.get_list("Set-Cookie") if line.startswith("gm_browser="))
    assert cookie.startswith(f"gm_browser={first};")
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    assert host_guard.secret({"gm_browser": first, "_streamlit_xsrf": "2|damaged"}) == first


@pytest.mark.parametrize("cookie", ["", "2|", "2|zz|zz|1", "2|01020304|00|1", "x" * 5000])
def test_damaged_cookies_are_no_secret(cookie: str) -> None:
    assert host_guard.secret({"_streamlit_xsrf": cookie}) == ""
